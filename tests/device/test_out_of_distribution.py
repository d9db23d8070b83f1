"""The warning of images unlike the training images: computed on the device, and of no consequence for what is sent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recording import client, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.out_of_distribution import OodDetector
from sfumato.device import Client, prepare
from tiny import PREPROCESSING, logits, own_logits, sure_image, unsure_image

pytestmark = pytest.mark.usefixtures("both_clients")

IMAGES = [unsure_image(0), sure_image(1), unsure_image(3), sure_image(4)]
UNIT = np.stack([prepare(pixels, PREPROCESSING) for pixels in IMAGES])


def energies(scores: np.ndarray) -> np.ndarray:
    return np.log(np.exp(scores).sum(axis=1))


def between(scores: np.ndarray) -> tuple[OodDetector, list[bool]]:
    """A detector that flags half of the images, and which."""
    found = energies(scores.astype(np.float64))
    middle = float(np.sort(found)[1:3].mean())
    return OodDetector(middle, 0.05, 100), (found < middle).tolist()


def test_images_are_flagged_whether_they_are_sent_or_not(gated_bundle: Bundle) -> None:
    for flagged in (0, 1):  # an image that is sent, and one that is handled on-device
        score = float(energies(own_logits(UNIT))[flagged])
        for threshold, expected in ((score + 0.01, True), (score - 0.01, False)):
            bundle = replace(gated_bundle, ood_detector=OodDetector(threshold, 0.05, 100))
            with recording() as server, client(server, bundle) as it:
                found = it.classify(IMAGES[flagged])
            assert found.out_of_distribution is expected
            assert found.predicted_by == ("device" if flagged else "cloud")


def test_the_flags_are_in_the_order_of_the_images_and_nothing_else_is_sent(gated_bundle: Bundle) -> None:
    detector, expected = between(own_logits(UNIT))
    sent, found = [], []
    for bundle in (gated_bundle, replace(gated_bundle, ood_detector=detector)):
        with recording() as server, client(server, bundle, encoding="binary") as it:
            found.append(it.classify_batch(IMAGES))
            found.append([it.classify_locally(pixels) for pixels in IMAGES])
        sent.append((server.paths, len(server.recorded)))
    assert sent[0] == sent[1]
    uncalibrated, _, calibrated, locally = found
    assert [one.out_of_distribution for one in uncalibrated] == 4 * [None]
    assert [one.out_of_distribution for one in calibrated] == expected
    assert [one and one.out_of_distribution for one in locally] == [None, expected[1], None, expected[3]]
    assert [one.label for one in calibrated] == [one.label for one in uncalibrated]


def test_without_the_gate_they_are_flagged_too(gated_bundle: Bundle) -> None:
    detector, expected = between(own_logits(UNIT))
    bundle = replace(gated_bundle, ood_detector=detector)
    with recording() as server, client(server, bundle, gate=False) as it:
        found = it.classify_batch(IMAGES)
    assert [(one.predicted_by, one.out_of_distribution) for one in found] == [("cloud", flag) for flag in expected]


def test_a_classifier_on_the_device_flags_by_its_own_logits(classifier_bundle: Bundle) -> None:
    detector, expected = between(logits(PREPROCESSING.normalize(UNIT)))
    for bundle, flags in (
        (replace(classifier_bundle, ood_detector=detector), expected),
        (classifier_bundle, 4 * [None]),
    ):
        with Client(None, bundle) as it:
            assert [one.out_of_distribution for one in it.classify_batch(IMAGES)] == flags
