"""Measure accuracy through the shipped path: the bundles' ONNX files under ONNX Runtime, over all images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.artifacts.bundle import DECODER_ONNX, DEOBFUSCATOR_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.artifacts.onnx_file import Array, ClassifierFunction, OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.image import from_pixels, to_pixels
from sfumato.device.predictions import softmax
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.by_class import ByClass, PredictedFrom, by_class
from sfumato.lab.evaluation.measures import per_image, psnr_db
from sfumato.lab.evaluation.results import Result
from sfumato.progress import Progress, silent


@dataclass(frozen=True)
class PlainAccuracy(Result):
    """How well a classifier does on plain images.

    Attributes:
        accuracy_plain: top-1 accuracy, in [0, 1].
        test_images: how many were measured.
    """

    accuracy_plain: float
    test_images: int


@dataclass(frozen=True)
class Evaluation(Result):
    """How well a classifier does behind an obfuscator, and what the bundle's own deobfuscator reconstructs.

    Only `accuracy_gated` takes the gate into account: `accuracy_obfuscated` and the reconstruction's errors are over
    all images, as if all had been sent. The joint deobfuscator is the attacker that the obfuscator was trained against;
    its figures say nothing about other attackers. A sketch has the means of its codewords instead, which were not
    trained jointly.

    Attributes:
        accuracy_plain: top-1 accuracy on plain images, in [0, 1].
        accuracy_obfuscated: top-1 accuracy on the payload, in [0, 1].
        test_images: how many were measured.
        accuracy_device: with a gate, accuracy of the on-device predictions over all images, in [0, 1].
        offload_rate: with a gate, the share of images that are sent, in [0, 1].
        accuracy_gated: with a gate, accuracy of the on-device prediction where the image is not sent, and of the
            classifier's on the payload where it is, in [0, 1].
        joint_deobfuscator_mse: mean squared error of the joint deobfuscator, for images in [0, 1].
        joint_deobfuscator_psnr_db: of that error, in decibels.
        joint_deobfuscator_ssim: structural similarity; None for images smaller than its window.
        codeword_means_mse: as `joint_deobfuscator_mse`, for a sketch.
        codeword_means_psnr_db: likewise.
        codeword_means_ssim: likewise.
    """

    accuracy_plain: float
    accuracy_obfuscated: float
    test_images: int
    accuracy_device: float | None = None
    offload_rate: float | None = None
    accuracy_gated: float | None = None
    joint_deobfuscator_mse: float | None = None
    joint_deobfuscator_psnr_db: float | None = None
    joint_deobfuscator_ssim: float | None = None
    codeword_means_mse: float | None = None
    codeword_means_psnr_db: float | None = None
    codeword_means_ssim: float | None = None


def evaluate_classifier(classifier: Bundle, images: ImageSet, *, progress: Progress = silent) -> PlainAccuracy:
    """Measure the accuracy of a classifier's ONNX file on plain images of the size that it takes.

    Raises:
        BundleError: images of another size.
        DataError: a class of the images is none of the classifier's.
    """
    return classifier_by_class(classifier, images, progress=progress)[0]


def classifier_by_class(
    classifier: Bundle, images: ImageSet, *, progress: Progress = silent
) -> tuple[PlainAccuracy, ByClass]:
    """Measure as `evaluate_classifier`, and by class."""
    classifier.check_single_label("accuracy")
    images = images.of_classes(classifier.labels)
    labels, predicted = images.labels.numpy(), classify(classifier, images, progress=progress).argmax(dim=1).numpy()
    accuracy = PlainAccuracy(float((predicted == labels).mean()), len(images))
    return accuracy, by_class(labels, classifier.labels, {"plain": predicted})


def classify(classifier: Bundle, images: ImageSet, *, progress: Progress = silent) -> Tensor:
    """Return the logits (N, classes) float32 of a classifier's ONNX file for N plain images of the size that it takes.

    Raises:
        BundleError: images of another size, or a multi-label classifier.
    """
    classifier.check_single_label("accuracy")
    predict, size = ClassifierFunction(classifier), classifier.preprocessing
    batches = right_size_batches(images, size, "accuracy, plain", progress)
    return torch.cat([torch.from_numpy(predict(size.normalize(batch))) for batch, _ in batches])


def evaluate_obfuscator(
    obfuscator: Bundle,
    classifier: Bundle,
    images: ImageSet,
    *,
    rounding: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Measure the classifier with and without the obfuscator, and what the bundle's deobfuscator reconstructs.

    Args:
        obfuscator: an obfuscator's bundle.
        classifier: the bundle of the classifier that it was trained for.
        images: of the size that both take.
        rounding: round the payload to 8-bit images, as for an endpoint that takes image files.
        progress: see `Progress`.

    Raises:
        BundleError: images of another size, an obfuscator for another classifier, a gate without usable on-device
            logits, or a payload outside [0, 1] that cannot be rounded.
        DataError: a class of the images is none of the classifier's.
    """
    return obfuscator_by_class(obfuscator, classifier, images, rounding=rounding, progress=progress)[0]


def obfuscator_by_class(
    obfuscator: Bundle,
    classifier: Bundle,
    images: ImageSet,
    *,
    rounding: bool = False,
    progress: Progress = silent,
) -> tuple[Evaluation, ByClass]:
    """Measure as `evaluate_obfuscator`, and by class."""
    classifier.check_single_label("accuracy")
    obfuscator.check_classifier(classifier)
    size = obfuscator.preprocessing
    images = images.of_classes(classifier.labels)
    predict = ClassifierFunction(classifier)
    obfuscate = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX))
    deobfuscator = find_lab_file(obfuscator, DEOBFUSCATOR_ONNX)
    reconstruct = None if deobfuscator is None else OnnxFunction(deobfuscator)
    shares: dict[str, list[npt.NDArray[np.bool_]]] = defaultdict(list)
    predicted: dict[PredictedFrom, list[npt.NDArray[np.int64]]] = defaultdict(list)
    errors: list[tuple[Tensor, Tensor]] = []
    for batch, labels in right_size_batches(images, size, "accuracy, obfuscated", progress):
        outputs = obfuscate.all(batch)
        payload = from_pixels(to_pixels(outputs[0], size, "rounded"), size) if rounding else outputs[0]
        predicted["plain"].append(predict(classifier.preprocessing.normalize(batch)).argmax(axis=1))
        predicted["obfuscated"].append(predict(payload).argmax(axis=1))
        if obfuscator.gate is not None:
            probabilities = softmax(device_logits(outputs, obfuscator))
            on_device, sent = probabilities.argmax(axis=1), obfuscator.gate.sends(probabilities)
            shares["accuracy_device"].append(on_device == labels)
            shares["offload_rate"].append(sent)
            predicted["gated"].append(np.where(sent, predicted["obfuscated"][-1], on_device))
        if reconstruct is not None:
            originals = torch.from_numpy((batch * 255).round().astype(np.uint8))
            errors.append(per_image(torch.from_numpy(reconstruct(payload).clip(0, 1)), originals))
    truth, found = images.labels.numpy(), {path: np.concatenate(parts) for path, parts in predicted.items()}
    figures = {name: float(np.concatenate(parts).mean()) for name, parts in shares.items()}
    figures |= {f"accuracy_{path}": float((each == truth).mean()) for path, each in found.items()}
    if errors:
        kind = "codeword_means" if obfuscator.recipe.kind == "sketch" else "joint_deobfuscator"
        figures |= reconstruction_figures(kind, errors)
    return Evaluation(test_images=len(images), **figures), by_class(truth, classifier.labels, found)


def reconstruction_figures(kind: str, errors: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the means of the errors of reconstructions, batches of what `per_image` gives, named after their kind."""
    mse, ssim = (float(torch.cat(parts).double().mean()) for parts in zip(*errors, strict=True))
    figures = {f"{kind}_mse": mse, f"{kind}_psnr_db": psnr_db(mse)}
    if not math.isnan(ssim):  # it has no meaning for images smaller than its window
        figures[f"{kind}_ssim"] = ssim
    return figures


def device_logits(outputs: list[Array], obfuscator: Bundle) -> Array:
    """Return the on-device logits, (N, classes) float32, among the outputs of a gated obfuscator's graph.

    Raises:
        BundleError: there are none, or not finite ones.
    """
    payload, *own = outputs
    shape = (len(payload), len(obfuscator.labels))
    expected = 1 + (DECODER_ONNX in obfuscator.files)
    if len(own) != expected or own[0].shape != shape or not np.isfinite(own[0]).all():
        raise BundleError(
            f"{obfuscator.path} has a gate, and so needs a second output of finite logits {shape}; "
            f"got {[part.shape for part in own] or 'none'}"
        )
    return own[0]


def right_size_batches(
    images: ImageSet, preprocessing: Preprocessing, stage: str, progress: Progress
) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
    """Yield what `ImageSet.scaled_batches` does; a `BundleError` if the images are of another size."""
    size, needed = tuple(images.images.shape[2:]), (preprocessing.height, preprocessing.width)
    if size != needed:
        raise BundleError(f"images are {size}, {needed} is needed")
    return images.scaled_batches(stage, progress)
