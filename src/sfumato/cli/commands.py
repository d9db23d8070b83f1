"""All commands; importing this module registers them, in the order in which the help lists them."""

from sfumato.cli import demo, protect, classify, serve, studio, train, evaluate, audit, frontier  # noqa: F401, I001
from sfumato.cli import baseline, references, controls, cost, reproduce  # noqa: F401
