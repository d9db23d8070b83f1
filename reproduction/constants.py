"""The paper's own figures, as printed.

Source: Leroux, Verbelen, Simoens, Dhoedt, *Privacy Aware Offloading of Deep Neural Networks*, 2018; the tables'
number is given with each constant. Accuracies and overheads are shares, not percents.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the paper's table 1.

    Attributes:
        plain: accuracy on plain images.
        obfuscated: accuracy on obfuscated images.
        macs: overhead of the obfuscator in multiply-accumulates, which the paper calls FLOPS.
        params: overhead of the obfuscator in parameters.
    """

    plain: float
    obfuscated: float
    macs: float
    params: float


TABLE_1 = {
    "VGG19": Row(0.934, 0.893, 0.067, 0.016),
    "ResNet18_1": Row(0.948, 0.898, 0.048, 0.029),
    "ResNet50": Row(0.951, 0.902, 0.021, 0.014),
    "GoogLeNet": Row(0.952, 0.905, 0.017, 0.053),
}
"""Source: table 1. Its ResNet18 is table 3's ResNet18_1: their obfuscated accuracies agree."""

NETS = ("ResNet18_1", "ResNet18_2", "ResNet50", "GoogLeNet", "VGG19")
"""Source: table 3, in its order."""

TABLE_3 = {
    "ResNet18_1": (0.898, 0.538, 0.360, 0.306, 0.474),
    "ResNet18_2": (0.726, 0.900, 0.467, 0.347, 0.460),
    "ResNet50": (0.621, 0.549, 0.902, 0.291, 0.448),
    "GoogLeNet": (0.710, 0.740, 0.663, 0.905, 0.415),
    "VGG19": (0.258, 0.200, 0.202, 0.130, 0.893),
}
"""Source: table 3; trained on the row's net, tested on the column's, in the order of `NETS`."""

TABLE_4 = (
    ("3 x 32 x 32", "conv2d", 32, 1),
    ("32 x 16 x 16", "bottleneck", 32, 2),
    ("64 x 16 x 16", "bottleneck", 64, 2),
    ("128 x 4 x 4", "bottleneck", 128, 2),
    ("128 x 4 x 4", "upsample bottleneck", 64, 1),
    ("64 x 8 x 8", "upsample bottleneck", 32, 1),
    ("32 x 16 x 16", "upsample bottleneck", 3, 1),
)
"""Source: table 4; input size, module, output channels, stride."""

PARAMS = 324_518
"""Source: appendix A."""
MACS = 2.6e7
"""Source: appendix A ("FLOPS")."""
EPOCHS = 100
"""Source: appendix A."""
LEARNING_RATE = 0.001
"""Source: appendix A."""
