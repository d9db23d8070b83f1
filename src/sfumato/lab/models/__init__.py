"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small images."""

from sfumato.lab.models.batch_norm import fold_norms
from sfumato.lab.models.classifiers import CLASSIFIERS, build_classifier
from sfumato.lab.models.cost import Cost, cost
from sfumato.lab.models.decoders import DECODERS
from sfumato.lab.models.normalize import Normalize
from sfumato.lab.models.obfuscator import Deobfuscator, Obfuscator, ObfuscatorPayload, obfuscator_of, payload_of
from sfumato.lab.models.precision import autocast
from sfumato.lab.models.reversal import reverse_gradient
from sfumato.lab.models.sketch import SketchDecoder, Sketcher, SketchGraph, SketchPayload, answer_bits, sketcher_of

__all__ = [
    "CLASSIFIERS",
    "DECODERS",
    "Cost",
    "Deobfuscator",
    "Normalize",
    "Obfuscator",
    "ObfuscatorPayload",
    "SketchDecoder",
    "SketchGraph",
    "SketchPayload",
    "Sketcher",
    "answer_bits",
    "autocast",
    "build_classifier",
    "cost",
    "fold_norms",
    "obfuscator_of",
    "payload_of",
    "reverse_gradient",
    "sketcher_of",
]
