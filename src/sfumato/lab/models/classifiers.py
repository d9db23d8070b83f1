"""Classifiers in their CIFAR variants: 3x3 first convolution, no early pooling; and stems for larger images.

The paper's overhead columns fit the CIFAR variants. All take normalised images (N, 3, H, W) float32 of any size that
their strides allow, and return logits (N, classes) float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.models.device_nets import DEVICE_NETS, DeviceNet
from sfumato.lab.models.obfuscator import ObfuscatorTrunk


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class _Block(nn.Module):
    """A body around a shortcut, which is projected where the shape changes; their sum is activated."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class BasicBlock(_Block):
    """Two 3x3 convolutions around a shortcut.

    Source: He et al. 2016, figure 2; the shortcut is projected (option B) where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        first, second = _conv_norm(in_channels, channels, 3, stride), _conv_norm(channels, channels, 3)
        super().__init__(in_channels, channels, stride, first, nn.ReLU(inplace=True), second)


class BottleneckBlock(_Block):
    """1x1, 3x3, 1x1 convolutions around a shortcut, four times wider outside than inside.

    Source: He et al. 2016, figure 5; the stride stands at the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        body = (
            _conv_norm(in_channels, channels, 1),
            nn.ReLU(inplace=True),
            _conv_norm(channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            _conv_norm(channels, 4 * channels, 1),
        )
        super().__init__(in_channels, 4 * channels, stride, *body)


class _Classifier(nn.Module):
    """`features`, averaged over their places if they are maps, and a linear `head`."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, classes)."""
        return features_and_logits(self, images)[1]


class ResNet(_Classifier):
    """A residual network.

    Source: He et al. 2016, section 4.2 (ResNet20) and table 1 with a 3x3 first convolution (18, 50); with a 7x7 one
    and a reduction of 4, table 1 as it stands.

    Args:
        block: the residual block.
        depths: number of blocks per stage; a first stage of none is the stem alone.
        widths: inner channels per stage; every stage but the first halves the image.
        classes: number of logits.
        kernel: of the first convolution.
        reduction: by how much the stem makes each side smaller, before any stage: 1, 2 (the first convolution
            strides) or 4 (a max-pooling behind it, too).
        channels: of the input; 3 for images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[BottleneckBlock],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        classes: int,
        *,
        kernel: int = 3,
        reduction: int = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(channels, widths[0], kernel, min(reduction, 2)), nn.ReLU(inplace=True))
        if reduction == 4:
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        channels = widths[0]
        stages: list[nn.Module] = []
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                stages.append(block(channels, width, stride))
                channels = width * block.expansion
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the head's input, (N, channels of the last stage)."""
        pooled: Tensor = self.stages(self.stem(images)).mean(dim=(2, 3))
        return pooled


class VGG(_Classifier):
    """Plain 3x3 convolutions with batch norm, a pooling behind each group, and one linear layer.

    The plan says for each group how many convolutions of how many channels it has; each halves the image.

    Source: Simonyan and Zisserman 2015, table 1, with the classifier reduced for small images.
    """

    def __init__(self, plan: tuple[tuple[int, int], ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for depth, width in plan:
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)


class Inception(nn.Module):
    """Four parallel branches, joined by channel; the 5x5 convolution is two 3x3 ones.

    `one` and `pool` are the widths of their branches, `three` and `five` reduction and width of theirs.

    Source: Szegedy et al. 2015, figure 2b, with batch norm.
    """

    def __init__(self, in_channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _inception_conv(in_channels, one, 1),
                nn.Sequential(_inception_conv(in_channels, three[0], 1), _inception_conv(three[0], three[1], 3)),
                nn.Sequential(
                    _inception_conv(in_channels, five[0], 1),
                    _inception_conv(five[0], five[1], 3),
                    _inception_conv(five[1], five[1], 3),
                ),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _inception_conv(in_channels, pool, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, one + three + five + pool, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _inception_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    # With bias before the norm, as in the variant whose 6,166,250 parameters the paper's overhead fits.
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class GoogLeNet(_Classifier):
    """GoogLeNet with batch norm, for small images.

    Source: Szegedy et al. 2015, table 1, from "inception (3a)" on, behind one 3x3 convolution.
    """

    _plan: tuple[tuple[tuple[int, tuple[int, int], tuple[int, int], int], ...], ...] = (
        ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
        (
            (192, (96, 208), (16, 48), 64),
            (160, (112, 224), (24, 64), 64),
            (128, (128, 256), (24, 64), 64),
            (112, (144, 288), (32, 64), 64),
            (256, (160, 320), (32, 128), 128),
        ),
        ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
    )

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_inception_conv(3, 192, 3)]
        channels = 192
        for index, stage in enumerate(self._plan):
            if index > 0:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            for one, three, five, pool in stage:
                layers.append(Inception(channels, one, three, five, pool))
                channels = one + three[1] + five[1] + pool
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)


class ConvMixer(_Classifier):
    """Patches mixed over places by large depthwise convolutions and over channels by 1x1 ones, at one resolution.

    Source: Trockman and Kolter 2023, section 2.
    """

    def __init__(self, width: int, depth: int, *, kernel: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, width, patch, patch), nn.GELU(), nn.BatchNorm2d(width))
        self.places = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width), nn.GELU(), nn.BatchNorm2d(width)
            )
            for _ in range(depth)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), sides multiples of the patch's -> maps (N, width, H / patch, W / patch)."""
        x: Tensor = self.patches(images)
        for places, channels in zip(self.places, self.channels, strict=True):
            x = channels(x + places(x))
        return x


TRUNK = "obfuscator-trunk"
"""The name of the classifier that an obfuscator can begin as."""

CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": lambda classes: ResNet(BasicBlock, (3, 3, 3), (16, 32, 64), classes),
    # The on-device baseline: 316,778 parameters and 21,283,776 multiply-accumulates, within the obfuscator's own budget
    # of 324,518 and 21,288,960. ResNet20 keeps the first but takes twice the second, a third of it at full resolution;
    # here only the stem works there, and a fourth stage at 4x4, with many parameters and few operations, uses up the
    # first. Depthwise convolutions would take several times as long to train on a CPU at the same count; with that time
    # a stronger net may fit. Source: He et al. 2016, section 4.2 (blocks and shortcuts); widths and depths are ours.
    "resnet-local": lambda classes: ResNet(BasicBlock, (0, 2, 2, 1), (32, 32, 64, 96), classes),
    "resnet18": lambda classes: ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), classes),
    "resnet18-imagenet": lambda classes: ResNet(
        BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), classes, kernel=7, reduction=4
    ),
    "resnet50": lambda classes: ResNet(BottleneckBlock, (3, 4, 6, 3), (64, 128, 256, 512), classes),
    # Source: Simonyan and Zisserman 2015, in shape (widths and depth are ours), and table 1, column E.
    "vgg7": lambda classes: VGG(((2, 32), (2, 64), (2, 128)), classes),
    "vgg19": lambda classes: VGG(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), classes),
    "googlenet": GoogLeNet,
    "convmixer": lambda classes: ConvMixer(160, 6, kernel=5, patch=4, classes=classes),
    TRUNK: ObfuscatorTrunk,
    **{name: partial(DeviceNet, shape) for name, shape in DEVICE_NETS.items()},
}


def build_classifier(name: str, classes: int = 10) -> nn.Module:
    """Build one of `CLASSIFIERS` with fresh weights, for at least 2 classes.

    Raises:
        KeyError: unknown name.
    """
    if name not in CLASSIFIERS:
        raise KeyError(f"unknown classifier {name!r}; known: {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name](classes)


def features_and_logits(net: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of a classifier's last layer, (N, D), maps averaged over their places, and its logits.

    Raises:
        AttributeError: it has no `features` or no `head`, as all classifiers of the zoo have.
    """
    features: Tensor = net.features(inputs)  # type: ignore[operator]
    if features.ndim == 4:
        features = features.mean(dim=(2, 3))
    return features, net.head(features)  # type: ignore[operator]
