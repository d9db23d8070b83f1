"""All commands; importing this module registers them, in the order in which the help lists them."""

from sfumato.cli import demo, init, protect, classify, serve, doctor, adopt, train, evaluate, audit  # noqa: F401, I001
from sfumato.cli import frontier, baseline, references, controls, cost, reproduce  # noqa: F401
