"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small pictures."""

from sfumato.nets.cifar import CLASSIFIERS, build_classifier
from sfumato.nets.cost import Cost, cost
from sfumato.nets.normalize import Normalize
from sfumato.nets.obfuscator import Deobfuscator, Obfuscator
from sfumato.nets.precision import autocast
from sfumato.nets.reversal import reverse_gradient
from sfumato.nets.sketch import SketchDecoder, Sketcher, SketchGraph, SketchTravels

__all__ = [
    "CLASSIFIERS",
    "Cost",
    "Deobfuscator",
    "Normalize",
    "Obfuscator",
    "SketchDecoder",
    "SketchGraph",
    "SketchTravels",
    "Sketcher",
    "autocast",
    "build_classifier",
    "cost",
    "reverse_gradient",
]
