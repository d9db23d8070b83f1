"""All commands; importing this module registers them, in the order in which the help lists them."""

from sfumato.cli import demo, protect, classify, serve, train, evaluate, audit, baseline, references, controls, cost  # noqa: F401, I001
