"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small pictures."""

from sfumato.nets.cifar import CLASSIFIERS, build_classifier
from sfumato.nets.cost import Cost, cost
from sfumato.nets.folding import fold_norms
from sfumato.nets.normalize import Normalize
from sfumato.nets.obfuscator import Deobfuscator, Obfuscator, ObfuscatorTravels, obfuscator_of, travels_of
from sfumato.nets.precision import autocast
from sfumato.nets.restoring import RESTORERS
from sfumato.nets.reversal import reverse_gradient
from sfumato.nets.sketch import SketchDecoder, Sketcher, SketchGraph, SketchTravels, answer_bits, sketcher_of

__all__ = [
    "CLASSIFIERS",
    "RESTORERS",
    "Cost",
    "Deobfuscator",
    "Normalize",
    "Obfuscator",
    "ObfuscatorTravels",
    "SketchDecoder",
    "SketchGraph",
    "SketchTravels",
    "Sketcher",
    "answer_bits",
    "autocast",
    "build_classifier",
    "cost",
    "fold_norms",
    "obfuscator_of",
    "reverse_gradient",
    "sketcher_of",
    "travels_of",
]
