"""Average precision and F1 of a multi-label classifier, through the shipped files, over all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.artifacts.bundle import DEOBFUSCATOR_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.artifacts.labelling import PRESENT_FROM
from sfumato.artifacts.onnx_file import Array, ClassifierFunction, OnnxFunction
from sfumato.device.image import from_pixels, to_pixels
from sfumato.device.predictions import sigmoid
from sfumato.errors import BundleError, DataError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import reconstruction_figures, right_size_batches
from sfumato.lab.evaluation.measures import per_image
from sfumato.lab.evaluation.results import Result
from sfumato.progress import Progress, silent


@dataclass(frozen=True)
class ClassPrecision:
    """How well one class is found; None where nothing was measured, or no image has the class.

    Attributes:
        label: the class.
        images: how many test images have it.
        average_precision_plain: on plain images, in [0, 1]; guessing gives the share of images that have the class.
        average_precision_obfuscated: on payloads.
        f1_plain: on plain images, in [0, 1], where a probability of at least 0.5 counts as present.
        f1_obfuscated: on payloads.
    """

    label: str
    images: int
    average_precision_plain: float | None = None
    average_precision_obfuscated: float | None = None
    f1_plain: float | None = None
    f1_obfuscated: float | None = None


@dataclass(frozen=True)
class PrecisionByClass(Result):
    """The classes, in the order of the classifier's labels."""

    classes: tuple[ClassPrecision, ...]


@dataclass(frozen=True)
class MultiLabelEvaluation(Result):
    """How well a multi-label classifier does on plain images, and behind an obfuscator.

    Means are over the classes that some test image has; None if there is no such class. For the deobfuscator see
    `sfumato.lab.evaluation.accuracy.Evaluation`.

    Attributes:
        test_images: how many were measured.
        mean_average_precision_plain: on plain images, in [0, 1].
        mean_average_precision_obfuscated: on payloads.
        f1_plain: the mean of the classes' F1 (macro F1) on plain images, in [0, 1]; present from a probability of 0.5.
        f1_obfuscated: on payloads.
        joint_deobfuscator_mse: mean squared error of the joint deobfuscator, for images in [0, 1].
        joint_deobfuscator_psnr_db: of that error, in decibels.
        joint_deobfuscator_ssim: structural similarity; None for images smaller than its window.
    """

    test_images: int
    mean_average_precision_plain: float | None = None
    mean_average_precision_obfuscated: float | None = None
    f1_plain: float | None = None
    f1_obfuscated: float | None = None
    joint_deobfuscator_mse: float | None = None
    joint_deobfuscator_psnr_db: float | None = None
    joint_deobfuscator_ssim: float | None = None


def evaluate_multi_label(
    classifier: Bundle,
    images: ImageSet,
    obfuscator: Bundle | None = None,
    *,
    rounding: bool = False,
    progress: Progress = silent,
) -> tuple[MultiLabelEvaluation, PrecisionByClass]:
    """Measure a multi-label classifier on plain images and, with an obfuscator, on payloads.

    Args:
        classifier: its bundle.
        images: of the size that it takes, with multi-label labels.
        obfuscator: the bundle of an obfuscator that was trained for it.
        rounding: round the payload to 8-bit images.
        progress: see `Progress`.

    Raises:
        BundleError: the classifier is single-label, images are of another size, or the obfuscator is for another
            classifier, or its payload cannot be rounded.
        DataError: the images have one class each, or not the classifier's classes.
    """
    if not classifier.multi_label:
        raise BundleError(f"{classifier.path} is single-label: its accuracy is measured, not its average precision")
    if obfuscator is not None:
        obfuscator.check_classifier(classifier)
    if not images.multi_label:
        raise DataError(f"{images.source}: the images have one class each; the classifier is multi-label")
    images, size = images.of_classes(classifier.labels), classifier.preprocessing
    predict = ClassifierFunction(classifier)
    obfuscate = None if obfuscator is None else OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX))
    deobfuscator = None if obfuscator is None else find_lab_file(obfuscator, DEOBFUSCATOR_ONNX)
    reconstruct = None if deobfuscator is None else OnnxFunction(deobfuscator)
    plain: list[Array] = []
    obfuscated: list[Array] = []
    errors: list[tuple[Tensor, Tensor]] = []
    for batch, _ in right_size_batches(images, size, "average precision", progress):
        plain.append(predict(size.normalize(batch)))
        if obfuscate is None:
            continue
        payload = obfuscate(batch)
        payload = from_pixels(to_pixels(payload, size, "rounded"), size) if rounding else payload
        obfuscated.append(predict(payload))
        if reconstruct is not None:
            originals = torch.from_numpy((batch * 255).round().astype(np.uint8))
            errors.append(per_image(torch.from_numpy(reconstruct(payload).clip(0, 1)), originals))
    present = images.labels.numpy() == 1
    classes = _by_class(classifier.labels, present, plain, obfuscated)
    means = {key: _mean([getattr(one, key) for one in classes]) for key in ("f1_plain", "f1_obfuscated")}
    for key in ("average_precision_plain", "average_precision_obfuscated"):
        means[f"mean_{key}"] = _mean([getattr(one, key) for one in classes])
    reconstruction = reconstruction_figures("joint_deobfuscator", errors) if errors else {}
    return MultiLabelEvaluation(len(images), **means, **reconstruction), PrecisionByClass(classes)


def average_precision(scores: npt.NDArray[np.floating], present: npt.NDArray[np.bool_]) -> float:
    """Return the average precision of a ranking, `sum_n (R_n - R_(n-1)) P_n` over the distinct scores, highest first.

    `P_n` and `R_n` are precision and recall when all images with at least the n-th score are taken. Equal scores are
    taken together, so that their order does not matter; nothing is interpolated.

    Source: the definition of scikit-learn's `average_precision_score`.

    Args:
        scores: (N,) finite.
        present: (N,), which images have the class; at least one.

    Returns:
        In (0, 1]; 1 if every image with the class is above all without it.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(present[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each group of equal scores
    precision = hits[last] / (np.flatnonzero(last) + 1)
    recall = hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def f1(predicted: npt.NDArray[np.bool_], present: npt.NDArray[np.bool_]) -> float:
    """Return the harmonic mean of precision and recall of (N,) predictions, in [0, 1]; some image has the class."""
    return float(2 * (predicted & present).sum() / (predicted.sum() + present.sum()))


def _by_class(
    labels: Sequence[str], present: npt.NDArray[np.bool_], plain: Sequence[Array], obfuscated: Sequence[Array]
) -> tuple[ClassPrecision, ...]:
    measured = {name: np.concatenate(parts) for name, parts in (("plain", plain), ("obfuscated", obfuscated)) if parts}
    classes = []
    for place, label in enumerate(labels):
        own, figures = present[:, place], {}
        for name, logits in measured.items() if own.any() else ():
            figures[f"average_precision_{name}"] = average_precision(logits[:, place], own)
            figures[f"f1_{name}"] = f1(sigmoid(logits[:, place]) >= PRESENT_FROM, own)
        classes.append(ClassPrecision(label, int(own.sum()), **figures))
    return tuple(classes)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
