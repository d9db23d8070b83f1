"""Out-of-distribution detection: which images are unlike those that a bundle was calibrated on.

It reads logits that were computed from the image itself, on the device. Those that the cloud returns say little about
that: they are of a payload, which looks much the same whatever the image was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sfumato.artifacts.records import integer, number, reading
from sfumato.errors import BundleError


def energy_score(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the negative free energy, high for images like the training images: (N, classes) floats -> (N,).

    Source: Liu et al. 2020, "Energy-based Out-of-distribution Detection", section 3.1, at temperature 1.
    """
    scores: npt.NDArray[np.float64] = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    return scores


@dataclass(frozen=True)
class OodDetector:
    """The energy score below which an image counts as out of distribution.

    Attributes:
        threshold: of `energy_score`, on the on-device logits.
        false_alarm_rate: at most this share of images like the training images is below it, in [0, 1].
        images: how many of these it was calibrated on.

    Raises:
        BundleError: the threshold is not finite, the rate outside [0, 1], or the number negative.
    """

    threshold: float
    false_alarm_rate: float
    images: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0 <= self.false_alarm_rate <= 1 and self.images >= 0):
            raise BundleError(
                "an out-of-distribution detector needs a finite threshold and a false alarm rate in [0, 1], got "
                f"{self.threshold}, {self.false_alarm_rate}, calibrated on {self.images} images"
            )

    @classmethod
    def calibrated(cls, logits: npt.NDArray[np.floating[Any]], false_alarm_rate: float) -> Self:
        """Calibrate it on the on-device logits (N, classes), N at least 1, of images that were not trained on."""
        scores = np.sort(energy_score(logits))
        place = min(int(false_alarm_rate * len(scores)), len(scores) - 1)
        return cls(float(scores[place]), false_alarm_rate, len(scores))

    def detects(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Return which images are out of distribution: on-device logits (N, classes) -> (N,) bool."""
        below: npt.NDArray[np.bool_] = energy_score(logits) < self.threshold
        return below

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Build it from `bundle.json`'s entry; a `BundleError` if a field is missing or of the wrong type."""
        with reading("ood_detector"):
            return cls(
                number(raw["threshold"], "threshold"),
                number(raw["false_alarm_rate"], "false_alarm_rate"),
                integer(raw["images"], "images"),
            )
