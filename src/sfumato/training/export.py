"""From trained networks to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.bundle import (
    CLASSIFIER_ONNX,
    CLASSIFIER_WEIGHTS,
    DEOBFUSCATOR_ONNX,
    DEOBFUSCATOR_WEIGHTS,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
    Preprocessing,
    fingerprint,
)
from sfumato.export import export_onnx, renew, save_weights
from sfumato.nets import Normalize
from sfumato.training.tasks import ClassifierTask, ObfuscationTask


def write_classifier_bundle(
    folder: Path,
    task: ClassifierTask,
    pictures: Tensor,
    *,
    name: str,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    recipe: dict[str, Any],
) -> Bundle:
    """Writes a classifier's bundle; figures and provenance are added by whoever measures.

    Args:
        folder: is created, or replaced.
        task: the trained task.
        pictures: (N, 3, H, W) float32 in [0, 1], real ones.
        name: of the model.
        labels: one name per class.
        preprocessing: how a picture becomes the net's input.
        recipe: the resolved recipe.
    """
    renew(folder)
    save_weights(task.net, folder / CLASSIFIER_WEIGHTS)
    with torch.no_grad():
        inputs = task.normalize.cpu()(pictures.cpu())
    export_onnx(task.net, folder / CLASSIFIER_ONNX, inputs, input_name="input", output_name="logits")
    bundle = Bundle(
        path=folder,
        kind="classifier",
        name=name,
        labels=labels,
        preprocessing=preprocessing,
        classifier_fingerprint=fingerprint(folder / CLASSIFIER_ONNX),
        recipe=recipe,
    )
    bundle.save()
    return bundle


def write_obfuscator_bundle(
    folder: Path,
    task: ObfuscationTask,
    pictures: Tensor,
    *,
    name: str,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    classifier_fingerprint: str,
    recipe: dict[str, Any],
) -> Bundle:
    """Writes an obfuscator's bundle; figures and provenance are added by whoever measures.

    The obfuscator's graph ends with the classifier's normalisation, so that what leaves the device is the
    classifier's input; the deobfuscator's graph begins with undoing it, so that it starts from what travels.

    Args:
        folder: is created, or replaced.
        task: the trained task.
        pictures: (N, 3, H, W) float32 in [0, 1], real ones.
        name: the classifier's name.
        labels: one name per class.
        preprocessing: how a picture becomes the classifier's input.
        classifier_fingerprint: of the classifier that it was trained for.
        recipe: the resolved recipe.
    """
    renew(folder)
    save_weights(task.obfuscator, folder / OBFUSCATOR_WEIGHTS)
    save_weights(task.deobfuscator, folder / DEOBFUSCATOR_WEIGHTS)
    normalize = task.normalize.cpu()
    travels = nn.Sequential(task.obfuscator, normalize).cpu().eval()
    export_onnx(travels, folder / OBFUSCATOR_ONNX, pictures, input_name="picture", output_name="obfuscated")
    inverse = Normalize(
        tuple((-normalize.mean / normalize.std).flatten().tolist()), tuple((1 / normalize.std).flatten().tolist())
    )
    restores = nn.Sequential(inverse, task.deobfuscator)
    with torch.no_grad():
        obfuscated = travels(pictures.cpu())
    export_onnx(restores, folder / DEOBFUSCATOR_ONNX, obfuscated, input_name="obfuscated", output_name="restored")
    bundle = Bundle(
        path=folder,
        kind="obfuscator",
        name=name,
        labels=labels,
        preprocessing=preprocessing,
        classifier_fingerprint=classifier_fingerprint,
        recipe=recipe,
    )
    bundle.save()
    return bundle
