"""Accuracy through the shipped path: the bundles' ONNX files under ONNX Runtime, over all images given."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.artifacts.bundle import (
    CLASSIFIER_ONNX,
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    OBFUSCATOR_ONNX,
    Bundle,
    Preprocessing,
)
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.device.eight_bit import from_pixels, to_pixels
from sfumato.device.gate import has_to_be_sent, softmax
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import per_image, psnr_db

BATCH = 250


def evaluate_classifier(classifier: Bundle, images: ImageSet) -> dict[str, float | int]:
    """Top-1 accuracy of a classifier's ONNX file on plain images.

    Args:
        classifier: a classifier's bundle.
        images: the images, of the size that it takes.

    Returns:
        "accuracy_plain" in [0, 1] and "test_images".

    Raises:
        BundleError: images of another size.
        DataError: a class of theirs is none of the classifier's.
    """
    images = images.of_classes(classifier.labels)
    right = classify(classifier, images).argmax(dim=1) == images.labels
    return {"accuracy_plain": float(right.double().mean()), "test_images": len(images)}


def classify(classifier: Bundle, images: ImageSet) -> Tensor:
    """What a classifier's ONNX file answers on plain images.

    Args:
        classifier: a classifier's bundle.
        images: N images, of the size that it takes.

    Returns:
        Logits (N, classes) float32.

    Raises:
        BundleError: images of another size.
    """
    answers = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    plain = _batches(images, classifier.preprocessing, "plain")
    return torch.cat([torch.from_numpy(answers(classifier.preprocessing.normalize(batch))) for batch, _ in plain])


def evaluate_obfuscator(
    obfuscator: Bundle, classifier: Bundle, images: ImageSet, *, rounding: bool = False
) -> dict[str, float | int]:
    """Accuracy of the classifier with and without the obfuscator, and what the joint deobfuscator reconstructs.

    The joint deobfuscator is the attacker that the obfuscator was trained to beat; its figures say nothing
    about other attackers.

    Args:
        obfuscator: an obfuscator's bundle.
        classifier: the bundle of the classifier that it was trained for.
        images: the images, of the size that both take.
        rounding: round the payload to 8-bit images, as for an endpoint that takes image files.

    Returns:
        "accuracy_plain", "accuracy_obfuscated" in [0, 1]; "joint_deobfuscator_mse", "..._psnr_db", "..._ssim"
        as the measures define them (images in [0, 1]) if the bundle has a deobfuscator ("codeword_means_mse", ... for
        that of a sketch, which was not trained jointly); "test_images". If it has a
        gate, also "accuracy_device" (the device's own answer, over all images), "offload_rate" (the share of these
        images that had to be sent) and "accuracy_gated" (the device's answer where the image stayed, the
        classifier's on the obfuscated one where it was sent), all in [0, 1]. Only "accuracy_gated" knows of the gate:
        "accuracy_obfuscated" and what the deobfuscator reconstructs are over all images, as if all had been sent.

    Raises:
        BundleError: images of another size, an obfuscator for another classifier, a gate without a usable answer
            of the device's, or drawings outside [0, 1] that cannot be rounded.
        DataError: a class of the images is none of the classifier's.
    """
    if obfuscator.classifier_fingerprint != classifier.classifier_fingerprint:
        raise BundleError(
            f"{obfuscator.path} was trained for classifier {obfuscator.classifier_fingerprint[:19]}…, "
            f"{classifier.path} is {classifier.classifier_fingerprint[:19]}…"
        )
    images = images.of_classes(classifier.labels)
    answers = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    obfuscate = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX))
    reconstruct = OnnxFunction(obfuscator.file(DEOBFUSCATOR_ONNX)) if DEOBFUSCATOR_ONNX in obfuscator.files else None
    plain = hidden = at_home = sent = gated = 0
    errors: list[Tensor] = []
    similarities: list[Tensor] = []
    for batch, labels in _batches(images, obfuscator.preprocessing, "obfuscated"):
        plain += int((answers(classifier.preprocessing.normalize(batch)).argmax(axis=1) == labels).sum())
        outputs = obfuscate.all(batch)
        payload = _rounded(outputs[0], obfuscator.preprocessing) if rounding else outputs[0]
        right = answers(payload).argmax(axis=1) == labels
        hidden += int(right.sum())
        if obfuscator.gate is not None:
            probabilities = softmax(device_logits(outputs, obfuscator))
            right_at_home = probabilities.argmax(axis=1) == labels
            sends = has_to_be_sent(probabilities, obfuscator.gate)
            at_home += int(right_at_home.sum())
            sent += int(sends.sum())
            gated += int(np.where(sends, right, right_at_home).sum())
        if reconstruct is not None:
            originals = torch.from_numpy((batch * 255).round().astype(np.uint8))
            mse, ssim = per_image(torch.from_numpy(reconstruct(payload).clip(0, 1)), originals)
            errors.append(mse)
            similarities.append(ssim)
    figures: dict[str, float | int] = {
        "accuracy_plain": plain / len(images),
        "accuracy_obfuscated": hidden / len(images),
        "test_images": len(images),
    }
    if obfuscator.gate is not None:
        figures["accuracy_device"] = at_home / len(images)
        figures["offload_rate"] = sent / len(images)
        figures["accuracy_gated"] = gated / len(images)
    if reconstruct is not None:
        who = "codeword_means" if obfuscator.recipe.kind == "sketch" else "joint_deobfuscator"
        error = float(torch.cat(errors).double().mean())
        figures[f"{who}_mse"] = error
        figures[f"{who}_psnr_db"] = psnr_db(error)
        similarity = float(torch.cat(similarities).double().mean())
        if not math.isnan(similarity):  # it has no meaning for images smaller than its window
            figures[f"{who}_ssim"] = similarity
    return figures


def _rounded(payload: Array, preprocessing: Preprocessing) -> Array:
    return from_pixels(to_pixels(payload, preprocessing, "rounded"), preprocessing)


def device_logits(outputs: list[Array], obfuscator: Bundle) -> Array:
    """The device's own answer among the outputs of a gated obfuscator's graph.

    Args:
        outputs: the payload (N, 3, H, W) float32, and what else the graph gives.
        obfuscator: the bundle, with a gate.

    Returns:
        Logits (N, classes) float32, finite.

    Raises:
        BundleError: there is no such answer.
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


def _batches(
    images: ImageSet, preprocessing: Preprocessing, what: str
) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
    size = tuple(images.images.shape[2:])
    if size != (preprocessing.height, preprocessing.width):
        raise BundleError(f"images are {size}, {(preprocessing.height, preprocessing.width)} is needed")
    console = Console(stderr=True)
    starts = range(0, len(images), BATCH)
    for start in track(starts, f"accuracy, {what}", console=console, transient=True, disable=not console.is_terminal):
        batch = images.images[start : start + BATCH].numpy().astype(np.float32) / np.float32(255)
        yield batch, images.labels[start : start + BATCH].numpy()
