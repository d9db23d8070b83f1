"""The 8-bit image in an obfuscator's output, for endpoints that take image files.

An obfuscator's graph ends with the classifier's normalisation. Where its output is an 8-bit image before that
(multiples of 1/255 in [0, 1]), undoing the normalisation and rounding gives back exactly this image, because float32
is off by some ten-thousandths of a level. So what the bundle states of its output is not trusted: the values show
whether they are those of an 8-bit image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import BundleError

EightBit = Literal["exact", "rounded"]
"""Whether the output has to be an 8-bit image, or is rounded to one."""
_OFF_LEVELS = 0.01
_HALF_A_LEVEL = 0.5


def to_pixels(outputs: NDArray[np.float32], preprocessing: Preprocessing, how: EightBit) -> NDArray[np.uint8]:
    """Return the 8-bit images that were normalised.

    Args:
        outputs: the classifier's input: (N, 3, H, W) float32, finite, normalised.
        preprocessing: with the normalisation.
        how: "exact" refuses outputs that are not 8-bit images already; "rounded" rounds those in [0, 1] to the
            nearest one.

    Returns:
        (N, H, W, 3) uint8, RGB.

    Raises:
        BundleError: the outputs are no 8-bit images, or leave [0, 1].
    """
    levels = preprocessing.denormalize(outputs.astype(np.float64)) * 255
    nearest = np.rint(levels).clip(0, 255)
    off = float(np.abs(levels - nearest).max(initial=0.0))
    if off > _OFF_LEVELS + _HALF_A_LEVEL:
        raise BundleError(
            "the obfuscator's output leaves [0, 1], which no image file can hold, so nothing was sent; use an "
            'obfuscator that was trained with output.format = "8-bit", or a sketch'
        )
    if off > _OFF_LEVELS and how == "exact":
        raise BundleError(
            "the obfuscator's output is no 8-bit image, so nothing was sent; round it (--round, or rounding=True; "
            "`sfumato evaluate --round` says what that costs), or use an obfuscator that was trained with "
            'output.format = "8-bit"'
        )
    return nearest.astype(np.uint8).transpose(0, 2, 3, 1)


def from_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Normalise 8-bit images of the classifier's size: (N, H, W, 3) uint8 -> (N, 3, H, W) float32."""
    return preprocessing.normalize(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
