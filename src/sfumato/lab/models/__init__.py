"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small pictures."""

from sfumato.lab.models.batch_norm import fold_norms
from sfumato.lab.models.classifiers import CLASSIFIERS, build_classifier
from sfumato.lab.models.cost import Cost, cost
from sfumato.lab.models.decoders import RESTORERS
from sfumato.lab.models.normalize import Normalize
from sfumato.lab.models.obfuscator import Deobfuscator, Obfuscator, ObfuscatorTravels, obfuscator_of, travels_of
from sfumato.lab.models.precision import autocast
from sfumato.lab.models.reversal import reverse_gradient
from sfumato.lab.models.sketch import SketchDecoder, Sketcher, SketchGraph, SketchTravels, answer_bits, sketcher_of

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
