"""From an image to the classifier's input; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sfumato.artifacts.records import integer, number, reading
from sfumato.errors import BundleError

Floats = TypeVar("Floats", np.float32, np.float64)
_MOST_PIXELS = 50_000_000


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to the classifier's input.

    An image is decoded to RGB, resized so that its shorter side fits, centre-cropped to
    `height` x `width`, scaled to float32 in [0, 1], and then (in the obfuscator's own graph, or before
    a plain classifier) turned into `(x - mean) / std`.

    Attributes:
        height: rows of the classifier's input, in pixels.
        width: columns of the classifier's input, in pixels.
        mean: one number per RGB channel, in units of the [0, 1] scale.
        std: one positive number per RGB channel, likewise.

    Raises:
        BundleError: a size or a deviation is not positive, or a number is not finite.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.height * self.width > _MOST_PIXELS:
            raise BundleError(
                f"preprocessing size {self.height}x{self.width} must be positive, of at most {_MOST_PIXELS:,} pixels"
            )
        finite = all(math.isfinite(v) for v in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise BundleError(
                f"preprocessing needs three means and three positive deviations, got {self.mean}, {self.std}"
            )

    def normalize(self, images: npt.NDArray[Floats]) -> npt.NDArray[Floats]:
        """Return `(images - mean) / std` per channel: (..., 3, H, W) floats in [0, 1] -> the same shape and dtype."""
        mean, std = self._channels(images)
        return (images - mean) / std

    def denormalize(self, inputs: npt.NDArray[Floats]) -> npt.NDArray[Floats]:
        """Invert `normalize`: a classifier's input (..., 3, H, W) floats -> the image, the same shape and dtype."""
        mean, std = self._channels(inputs)
        return inputs * std + mean

    def _channels(self, like: npt.NDArray[Floats]) -> tuple[npt.NDArray[Floats], npt.NDArray[Floats]]:
        mean, std = (np.asarray(values, like.dtype)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Preprocessing:
        """Build it from `bundle.json`'s entry; a `BundleError` if a field is missing or of the wrong type."""
        with reading("preprocessing"):
            return cls(
                height=integer(raw["height"], "height"),
                width=integer(raw["width"], "width"),
                mean=cast("tuple[float, float, float]", tuple(number(v, "mean") for v in raw["mean"])),
                std=cast("tuple[float, float, float]", tuple(number(v, "std") for v in raw["std"])),
            )
