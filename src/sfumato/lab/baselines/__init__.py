"""Baselines to compare an obfuscator with, behind one interface.

To add one: write a file in this folder with a class derived from `Method`, and enter it in `registry.METHODS`.
Training, bundles, the command line and audits then support it.
"""

from sfumato.lab.baselines.build import make
from sfumato.lab.baselines.bundles import load_module, refit, write_baseline
from sfumato.lab.baselines.method import Method, Training
from sfumato.lab.baselines.registry import METHODS, build

__all__ = ["METHODS", "Method", "Training", "build", "load_module", "make", "refit", "write_baseline"]
