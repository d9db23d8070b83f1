"""The gate of a bundle: which images leave the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.artifacts.records import integer, number, reading
from sfumato.errors import BundleError


@dataclass(frozen=True)
class Gate:
    """Selective offloading: when the on-device prediction is final, so that nothing is sent.

    Attributes:
        threshold: an image is sent if the probability of the device's likeliest class is below this, in [0, 1].
        offload_rate: the share of images to send that the threshold was chosen for, in [0, 1].
        images: how many images it was chosen on; neither trained on nor tested on.

    Raises:
        BundleError: a number is outside [0, 1], or negative.
    """

    threshold: float
    offload_rate: float
    images: int

    def __post_init__(self) -> None:
        if not (0 <= self.threshold <= 1 and 0 <= self.offload_rate <= 1 and self.images >= 0):
            raise BundleError(
                f"a gate's threshold and offload rate lie in [0, 1], got {self.threshold}, {self.offload_rate}, chosen "
                f"on {self.images} images"
            )

    def sends(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which images have to be sent: on-device probabilities (N, classes) in [0, 1] -> (N,) bool."""
        below: npt.NDArray[np.bool_] = probabilities.max(axis=1) < self.threshold
        return below

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Gate:
        """Build it from `bundle.json`'s entry; a `BundleError` if a field is missing or of the wrong type."""
        with reading("gate"):
            return cls(
                number(raw["threshold"], "threshold"),
                number(raw["offload_rate"], "offload_rate"),
                integer(raw["images"], "images"),
            )
