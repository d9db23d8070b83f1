"""Baselines to compare an obfuscator with, behind one interface.

To add one: write a class derived from `Method`, and enter it in `bundles.METHODS`. Training, bundles, the command line
and audits then support it.
"""

from sfumato.lab.baselines.bundles import METHODS, build, load_module, make, refit, write_baseline
from sfumato.lab.baselines.method import Method, Training

__all__ = ["METHODS", "Method", "Training", "build", "load_module", "make", "refit", "write_baseline"]
