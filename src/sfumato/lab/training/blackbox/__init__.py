"""Obfuscators for a classifier with query-only access: query within a budget, learn a surrogate, train for it."""

from sfumato.lab.training.blackbox.oracle import Oracle, is_endpoint
from sfumato.lab.training.blackbox.run import protect_black_box

__all__ = ["Oracle", "is_endpoint", "protect_black_box"]
