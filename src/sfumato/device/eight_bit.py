"""The 8-bit image in what an obfuscator makes, for endpoints that take image files.

An obfuscator's graph ends with the classifier's normalisation. Where its drawing is an 8-bit image before that
(multiples of 1/255 in [0, 1]), undoing the normalisation and rounding gives back this very image: a level is what two
neighbours are apart, and float32 is off by some ten-thousandths of one. So the bundle need not say what it draws, and
would not be believed: the numbers show whether they are an image's.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import BundleError

EightBit = Literal["exact", "rounded"]
"""Whether the drawing has to be an 8-bit image, or is rounded to one."""
_OFF_LEVELS = 0.01
_HALF_A_LEVEL = 0.5


def to_pixels(drawings: NDArray[np.float32], preprocessing: Preprocessing, how: EightBit) -> NDArray[np.uint8]:
    """The 8-bit images that were normalised.

    Args:
        drawings: the classifier's input: (N, 3, H, W) float32, finite, normalised.
        preprocessing: with the normalisation.
        how: "exact" refuses drawings that are not 8-bit images already; "rounded" rounds those in [0, 1] to the
            nearest one.

    Returns:
        (N, H, W, 3) uint8, RGB.

    Raises:
        BundleError: the drawings are none, or leave [0, 1].
    """
    mean, std = (np.asarray(values, np.float64)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    levels = (drawings.astype(np.float64) * std + mean) * 255
    nearest = np.rint(levels).clip(0, 255)
    off = float(np.abs(levels - nearest).max(initial=0.0))
    if off > _OFF_LEVELS + _HALF_A_LEVEL:
        raise BundleError(
            "what the obfuscator draws leaves [0, 1], which no image file can hold, so nothing was sent; use an "
            'obfuscator that was trained with output.format = "8-bit", or a sketch'
        )
    if off > _OFF_LEVELS and how == "exact":
        raise BundleError(
            "what the obfuscator draws is no 8-bit image, so nothing was sent; round it (--round, or rounding=True; "
            "`sfumato evaluate --round` says what that costs), or use an obfuscator that was trained with "
            'output.format = "8-bit"'
        )
    return nearest.astype(np.uint8).transpose(0, 2, 3, 1)


def from_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What a classifier makes of 8-bit images of its size: (N, H, W, 3) uint8 -> (N, 3, H, W) float32, normalised."""
    return preprocessing.normalize(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
