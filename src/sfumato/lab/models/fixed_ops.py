"""Operations without weights: removal from the image, normalisation, rounding, and the reversal of gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LUMINANCE = 0.299, 0.587, 0.114
"""Shares of red, green and blue in brightness. Source: ITU-R BT.601."""
LEVEL = 1 / 255
"""The distance of two neighbouring values of an 8-bit image in [0, 1]."""


class Removal(nn.Module):
    """Remove colour, low frequencies, or both, before the obfuscator sees the image.

    No attacker recovers what is removed here, except as far as it is correlated with the rest. Both are projections: a
    second removal changes nothing.

    Source: classifiers can use the high frequencies that people hardly see: Wang et al. 2020, "High-frequency component
    helps explain the generalization of CNNs"; removing low ones from a block's cosine transform for privacy: Wang et
    al. 2022, "Privacy-preserving face recognition in the frequency domain". Here one transform covers the whole image.

    Args:
        colour: keep only brightness, in all three channels.
        frequencies: remove so many of the lowest frequencies of each side, together: the `k x k` corner of the cosine
            transform; 1 is the mean of each channel, 0 removes none. At most the image's shorter side.
    """

    def __init__(self, *, colour: bool = False, frequencies: int = 0) -> None:
        super().__init__()
        self.colour, self.frequencies = colour, frequencies

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> the same shape; in [-1, 1] where frequencies are removed."""
        if self.colour:
            weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
            images = (images * weights).sum(dim=1, keepdim=True).repeat(1, 3, 1, 1)
        if self.frequencies:
            rows, columns = (cosines(side, self.frequencies).to(images) for side in images.shape[2:])
            corner = rows @ images @ columns.T
            images = images - rows.T @ corner @ columns
        return images


def cosines(side: int, count: int) -> Tensor:
    """Return the lowest frequencies of the cosine transform (DCT-II), (count, side) float32 with orthonormal rows.

    Source: Ahmed, Natarajan and Rao 1974.
    """
    places, frequencies = torch.arange(side).double(), torch.arange(count).double()
    waves = torch.cos(math.pi / side * (places + 0.5) * frequencies[:, None]) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves.float()


class Normalize(nn.Module):
    """`(images - mean) / std`, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] -> (N, C, H, W) float, the classifier's input."""
        return (images - self.mean) / self.std


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor, low: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low = low
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ((x >= ctx.low) & (x <= 1)), None, None


def straight_through(x: Tensor, quantised: Tensor, low: float) -> Tensor:
    """Return the quantised values, with a gradient to `x` where it lies in [low, 1].

    Source: Bengio et al. 2013 (straight-through estimator), in the clipped form of Courbariaux et al. 2016.
    """
    if torch.compiler.is_exporting():
        return quantised
    out: Tensor = _StraightThrough.apply(x, quantised, low)  # type: ignore[no-untyped-call]
    return out


def round_to_8_bits(x: Tensor) -> Tensor:
    """Round floats of any shape to multiples of 1/255 in [0, 1], the values of an 8-bit image, with a gradient."""
    return straight_through(x, (x.clamp(0, 1) * 255).round() / 255, 0.0)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x forward, `-weight` times the gradient backward; the weight is lambda, at least 0.

    Between obfuscator and deobfuscator, it lets one backward pass of `L_c + L_r` give the deobfuscator
    the gradient of `L_r` and the obfuscator the gradient of `L_c - weight * L_r`.

    Source: Ganin and Lempitsky 2015, section 3.1.
    """
    reversed_: Tensor = _ReverseGradient.apply(x, weight)  # type: ignore[no-untyped-call]
    return reversed_
