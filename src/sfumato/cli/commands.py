"""All commands; importing this module registers them, in the order in which the help lists them."""

from sfumato.cli import demo, init, protect, classify, serve, studio, doctor, adopt, train, evaluate, quantize  # noqa: F401, I001
from sfumato.cli import export, transfer, audit, hides, frontier, baseline, references, controls, cost  # noqa: F401
