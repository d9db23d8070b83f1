"""All commands; importing this module registers them."""

from sfumato.cli import classify, protect, serve, train  # noqa: F401
