"""Accuracy by class, and which classes are taken for which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sfumato.lab.evaluation.results import Result

PredictedFrom = Literal["plain", "obfuscated", "gated"]
"""What was predicted from: the plain image, the payload, or, with a gate, the payload where it is sent."""


@dataclass(frozen=True)
class ClassAccuracy:
    """The share of a class's images that are classified correctly, in [0, 1]; None where nothing was measured.

    Attributes:
        label: the class.
        images: how many test images it has.
        plain: on plain images.
        obfuscated: on payloads.
        gated: with a gate, of the on-device prediction where the image is not sent, and of the classifier's where it
            is.
    """

    label: str
    images: int
    plain: float | None = None
    obfuscated: float | None = None
    gated: float | None = None


@dataclass(frozen=True)
class Confused:
    """How many images of one class are classified as another.

    Attributes:
        true: the place of their class among the labels.
        predicted: likewise, of the predicted one.
        images: how many.
    """

    true: int
    predicted: int
    images: int


@dataclass(frozen=True)
class ByClass(Result):
    """Accuracy by class, and the confusion matrix.

    Attributes:
        predicted_from: of the confusions: as deployed.
        classes: in the order of the classifier's labels.
        confused: the entries of the confusion matrix off its diagonal that are not 0, the largest first.
    """

    predicted_from: PredictedFrom
    classes: tuple[ClassAccuracy, ...]
    confused: tuple[Confused, ...]

    @property
    def matrix(self) -> npt.NDArray[np.int64]:
        """The confusion matrix (classes, classes): rows are the true classes, columns the predicted ones."""
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for entry in self.confused:
            matrix[entry.true, entry.predicted] = entry.images
        matrix[np.diag_indices_from(matrix)] = [one.images for one in self.classes] - matrix.sum(axis=1)
        return matrix

    def worst(self, count: int) -> list[int]:
        """Return the places of the classes with the lowest accuracy as deployed, lowest first; none without images."""
        measured = [place for place, one in enumerate(self.classes) if one.images]
        return sorted(measured, key=lambda place: getattr(self.classes[place], self.predicted_from))[:count]

    def taken_for(self, place: int) -> Confused | None:
        """Return what a class is most often taken for; None if for nothing."""
        return next((entry for entry in self.confused if entry.true == place), None)


def by_class(
    labels: npt.NDArray[np.int64], names: Sequence[str], predicted: Mapping[PredictedFrom, npt.NDArray[np.int64]]
) -> ByClass:
    """Count predictions by class.

    Args:
        labels: (N,) the true classes, in [0, len(names)).
        names: one per class.
        predicted: (N,) each, likewise; the last one is what is deployed.
    """
    *_, path = predicted
    images = np.bincount(labels, minlength=len(names))
    correct = {how: np.bincount(labels[found == labels], minlength=len(names)) for how, found in predicted.items()}
    classes = [
        ClassAccuracy(name, int(count), **{how: float(hits[place] / count) for how, hits in correct.items() if count})
        for place, (name, count) in enumerate(zip(names, images, strict=True))
    ]
    wrong = predicted[path] != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[path][wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    confused = [Confused(int(pairs[0, k]), int(pairs[1, k]), int(counts[k])) for k in order]
    return ByClass(path, tuple(classes), tuple(confused))
