"""Calibrate a bundle's out-of-distribution detector on images like those that it was trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.artifacts.out_of_distribution import OodDetector
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import classify, device_logits
from sfumato.progress import Progress, silent

FALSE_ALARM_RATE = 0.05
"""The usual level, of which Liu et al. 2020 report: 95 % of the images of the training distribution pass."""
ENOUGH_IMAGES = 5000
"""With so many, the share of new images below the threshold is within 0.6 points of the rate in 19 cases of 20."""


def with_ood_detector(bundle: Bundle, images: ImageSet, *, progress: Progress = silent) -> Bundle:
    """Return the bundle with a detector calibrated on these images, or a sample of them; it is not saved.

    Args:
        bundle: of a classifier, or of an obfuscator with a gate.
        images: of the size that it takes, not trained on; their classes do not matter.
        progress: see `Progress`.

    Raises:
        BundleError: images of another size, a multi-label bundle, or an obfuscator without on-device logits: the image
            is seen by no classifier, and the cloud's logits are of the payload.
    """
    bundle.check_single_label("the out-of-distribution detector")
    if len(images) > ENOUGH_IMAGES:
        _, images = images.split(ENOUGH_IMAGES)
    logits = on_device_logits(bundle, images, progress=progress)
    return replace(bundle, ood_detector=OodDetector.calibrated(logits, FALSE_ALARM_RATE))


def on_device_logits(bundle: Bundle, images: ImageSet, *, progress: Progress = silent) -> Array:
    """Return the logits (N, classes) float32 that the device computes from images; see `with_ood_detector`."""
    if bundle.kind == "classifier":
        return classify(bundle, images, progress=progress).numpy()
    if bundle.gate is None:
        raise BundleError(
            f"{bundle.path} has no on-device logits, from which to tell whether an image is like the training images; "
            "an obfuscator with a gate, such as a sketch, or a classifier's bundle has"
        )
    size, needed = tuple(images.images.shape[2:]), (bundle.preprocessing.height, bundle.preprocessing.width)
    if size != needed:
        raise BundleError(f"images are {size}, {needed} is needed")
    run, stage = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)), "on-device logits"
    return np.concatenate(
        [device_logits(run.all(batch), bundle) for batch, _ in images.scaled_batches(stage, progress)]
    )
