"""Classifiers of which only answers can be had: asked within a budget, learned, and drawn for."""

from sfumato.lab.training.blackbox.oracle import Oracle, is_endpoint
from sfumato.lab.training.blackbox.run import protect_black_box

__all__ = ["Oracle", "is_endpoint", "protect_black_box"]
