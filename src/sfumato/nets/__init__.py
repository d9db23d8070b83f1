"""Networks: the paper's obfuscator and deobfuscator, and classifiers for small pictures."""

from sfumato.nets.cifar import CLASSIFIERS, build_classifier
from sfumato.nets.cost import Cost, cost
from sfumato.nets.normalize import Normalize
from sfumato.nets.obfuscator import Deobfuscator, Obfuscator

__all__ = ["CLASSIFIERS", "Cost", "Deobfuscator", "Normalize", "Obfuscator", "build_classifier", "cost"]
