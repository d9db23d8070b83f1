"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small images."""

from sfumato.lab.models.batch_norm import fold_norms
from sfumato.lab.models.classifiers import CLASSIFIERS, build_classifier
from sfumato.lab.models.cost import Cost, cost
from sfumato.lab.models.decoders import DECODERS
from sfumato.lab.models.fixed_ops import Normalize, reverse_gradient
from sfumato.lab.models.obfuscator import Deobfuscator, Obfuscator
from sfumato.lab.models.precision import autocast
from sfumato.lab.models.rebuild import Payload, obfuscator_of, sketcher_of
from sfumato.lab.models.sketch import SketchDecoder, Sketcher, SketchGraph, class_bits

__all__ = [
    "CLASSIFIERS",
    "DECODERS",
    "Cost",
    "Deobfuscator",
    "Normalize",
    "Obfuscator",
    "Payload",
    "SketchDecoder",
    "SketchGraph",
    "Sketcher",
    "autocast",
    "build_classifier",
    "class_bits",
    "cost",
    "fold_norms",
    "obfuscator_of",
    "reverse_gradient",
    "sketcher_of",
]
