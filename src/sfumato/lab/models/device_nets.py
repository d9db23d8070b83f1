"""Networks for the device, one family at three budgets: rows of 3x3 convolutions with ReLU and nothing else.

In training each convolution has parallel branches, which make a plain row learn as well as a residual network; they
fold into the one convolution exactly, so that the device computes only what is fast there. Measured under ONNX Runtime
on one thread (`python benchmarks/device_nets.py`): dense convolutions run at the same rate at any width, so that time
follows the multiply-accumulates; a shortcut takes 5 % more, squeeze-excitation 7 %, hard-swish in place of ReLU 20 %
and grouped convolutions a third more per multiply-accumulate.

Source: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets great again", sections 3.2 and 3.3; the shapes are ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)

_LARGEST_MAP = 48
"""Larger images are reduced to sides of at most so many pixels first, so that a budget holds at any size."""


@dataclass(frozen=True)
class DeviceShape:
    """The shape of a network for the device.

    Attributes:
        stages: number and width of the convolutions of each stage. All stages but the first halve the map in their
            first convolution.
        halved: so does the first stage.
        branches: train with parallel branches, which costs time then and none afterwards.
        squeeze: a squeeze-excitation behind each stage but the first.
    """

    stages: tuple[tuple[int, int], ...]
    halved: bool = False
    branches: bool = True
    squeeze: bool = False


DEVICE_NETS: dict[str, DeviceShape] = {
    "device-nano": DeviceShape(((2, 16), (2, 32), (2, 64)), halved=True),
    "device-paper": DeviceShape(((1, 32), (4, 32), (4, 64), (2, 88))),
    "device-large": DeviceShape(((1, 32), (4, 64), (4, 96), (2, 144))),
}
"""The budgets, for an image of 32x32 and ten classes: at most 2.5 million multiply-accumulates and 100,000 parameters;
what is left of the paper's 324,518 parameters, and of the time of its obfuscator, beside a sketch's decoder; 60 million
multiply-accumulates."""


class _Branch(nn.Module):
    """A 3x3 or 1x1 convolution, or none (kernel 0), with batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, bias=False) if kernel else None
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        if self.conv is not None:
            kernel = self.conv.kernel_size[0]
            if kernel == 1:
                # The same as a strided 1x1 convolution, whose weights' gradient oneDNN computes past the end of its
                # memory where there are few channels: training crashed on images of 64x64.
                x, stride = x[:, :, ::stride, ::stride], 1
            x = F.conv2d(x, self.conv.weight, None, stride, padding=kernel // 2)
        out: Tensor = self.norm(x)
        return out

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the 3x3 kernel (out, in, 3, 3) and the bias (out,) that compute the same in evaluation mode.

        Source: Ding et al. 2021, equation 3.
        """
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        kernel = torch.eye(len(scale)).to(scale)[:, :, None, None] if self.conv is None else self.conv.weight
        kernel = F.pad(kernel, [(3 - kernel.shape[-1]) // 2] * 4)
        return kernel * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


class BranchedConv(nn.Module):
    """A 3x3 convolution that is the sum of branches while it is trained: 3x3, 1x1 and identity, each with batch norm.

    While its norms are in evaluation mode it computes the one convolution that they fold into, and passes gradients
    through the folding.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: 1 or 2; only with 1, and as many channels in as out, there is an identity.
        branches: False leaves the 3x3 convolution alone.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, branches: bool = True) -> None:
        super().__init__()
        self.stride = stride
        kernels = [3, 1, 0] if stride == 1 and in_channels == out_channels else [3, 1]
        self.branches = nn.ModuleList(
            _Branch(in_channels, out_channels, kernel) for kernel in (kernels if branches else [3])
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (out, in, 3, 3) and the bias (out,) of the convolution that all branches fold into."""
        kernels, biases = zip(*(branch.folded() for branch in self._each()), strict=True)
        return reduce(torch.add, kernels), reduce(torch.add, biases)

    def _each(self) -> list[_Branch]:
        return [branch for branch in self.branches if isinstance(branch, _Branch)]

    def forward(self, x: Tensor, reduction: int = 1) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W'), where a reduction of 2 doubles the stride."""
        stride = self.stride * reduction
        if any(branch.norm.training for branch in self._each()):
            out: Tensor = reduce(torch.add, (branch(x, stride) for branch in self._each()))
            return out
        kernel, bias = self.folded()
        return F.conv2d(x, kernel, bias, stride, padding=1)


class _FoldedConv(nn.Conv2d):
    """What a `BranchedConv` folds into, for good."""

    def forward(self, input: Tensor, reduction: int = 1) -> Tensor:  # noqa: A002 - as torch names it
        """As `BranchedConv`."""
        return F.conv2d(input, self.weight, self.bias, self.stride[0] * reduction, padding=1)


def fold_branches(net: Net) -> Net:
    """Return a copy of a network in which each `BranchedConv` is one convolution; the network itself if it has none.

    The copy is in evaluation mode, computes the same up to rounding, and is what the device runs.
    """
    if not any(isinstance(part, BranchedConv) for part in net.modules()):
        return net
    folded = copy.deepcopy(net).eval()
    for parent in list(folded.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, BranchedConv):
                setattr(parent, name, _fold(part))
    return folded


@torch.no_grad()
def _fold(conv: BranchedConv) -> _FoldedConv:
    kernel, bias = conv.folded()
    out_channels, in_channels = kernel.shape[:2]
    folded = _FoldedConv(in_channels, out_channels, 3, conv.stride, padding=1, device=kernel.device, dtype=kernel.dtype)
    folded.weight.copy_(kernel)
    assert folded.bias is not None
    folded.bias.copy_(bias)
    return folded.eval()


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in [0, 1] that depends on the means of all channels.

    Source: Hu et al. 2018, section 3, with a reduction of 4 and the hard sigmoid of Howard et al. 2019, section 5.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.Linear(channels, channels // 4),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 4, channels),
            nn.Hardsigmoid(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        scaled: Tensor = x * self.weights(F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None]
        return scaled


class DeviceNet(nn.Module):
    """A row of 3x3 convolutions with ReLU, the mean over places, and a linear `head`.

    Takes normalised images (N, 3, H, W) float32 of any size of at least 8. Those with a side of more than 48 pixels are
    reduced: the stem strides; where that is not enough, a pooling follows it; and the image itself is shrunk before.
    """

    def __init__(self, shape: DeviceShape, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index, (depth, width) in enumerate(shape.stages):
            for place in range(depth):
                stride = 2 if place == 0 and index > 0 else 1
                layers += [BranchedConv(channels, width, stride, branches=shape.branches), nn.ReLU(inplace=True)]
                channels = width
            if shape.squeeze and index > 0:
                layers.append(SqueezeExcitation(width))
        self.halved = shape.halved
        self.stem, self.layers = layers[0], nn.Sequential(*layers[2:])
        self.head = nn.Linear(channels, classes)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the head's input, (N, channels of the last stage)."""
        halvings, side = int(self.halved), max(images.shape[2:])
        while side > _LARGEST_MAP:
            halvings, side = halvings + 1, -(-side // 2)
        for _ in range(halvings - 2):
            images = F.avg_pool2d(images, 2)
        x = F.relu(self.stem(images, 2 if halvings else 1), inplace=True)
        if halvings > 1:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        return F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
