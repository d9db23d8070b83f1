"""Steps without weights around the obfuscator: what is taken from the image first, and rounding at the end."""

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
    """Removes colour, low frequencies, or both, before the obfuscator looks at the image.

    What is removed here no attacker gets back, whatever he knows, save what other frequencies tell of it. Both are
    projections: a second removal changes nothing.

    Source: low frequencies are what people see most of, and classifiers can do with the others: Wang et al. 2020,
    "High-frequency component helps explain the generalization of CNNs"; removing them from a block's cosine transform
    for privacy: Wang et al. 2022, "Privacy-preserving face recognition in the frequency domain". Here one transform
    covers the whole image.

    Args:
        colour: keep brightness alone, in all three channels.
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
    """The lowest frequencies of the orthonormal cosine transform (DCT-II).

    Source: Ahmed, Natarajan and Rao 1974.

    Args:
        side: numbers to transform.
        count: frequencies, at most `side`.

    Returns:
        (count, side) float32 with orthonormal rows; the first is constant.
    """
    places, frequencies = torch.arange(side).double(), torch.arange(count).double()
    waves = torch.cos(math.pi / side * (places + 0.5) * frequencies[:, None]) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves.float()


class _Round(torch.autograd.Function):
    """The nearest 8-bit value forward; backward the gradient passes where the input lies in [0, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _rounded(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = grads[0] * ((x >= 0) & (x <= 1))
        return passed


def round_to_8_bits(x: Tensor) -> Tensor:
    """The nearest image that an 8-bit file can hold, with a gradient.

    Source: Bengio et al. 2013 (straight-through estimator), in the clipped form of Courbariaux et al. 2016.

    Args:
        x: float, any shape.

    Returns:
        The same shape and dtype; multiples of 1/255 in [0, 1].
    """
    if torch.compiler.is_exporting():
        return _rounded(x)
    out: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return out


def _rounded(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255
