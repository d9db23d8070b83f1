"""A detector calibrated through the bundle's files, against logits worked out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation import out_of_distribution
from sfumato.lab.evaluation.out_of_distribution import with_ood_detector
from tiny import LABELS, PREPROCESSING, SIZE, logits, own_logits


def noise(count: int, side: int = SIZE) -> ImageSet:
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=source)
    return ImageSet(pixels, torch.zeros(count, dtype=torch.int64), LABELS, "noise", "noise")


def fifth_percentile(scores: np.ndarray) -> float:
    """The energy score that 19 of 20 images reach."""
    energies = np.sort(np.log(np.exp(scores.astype(np.float64)).sum(axis=1)))
    return float(energies[len(energies) // 20])


def test_it_is_calibrated_on_the_on_device_logits(gated_bundle: Bundle, classifier_bundle: Bundle) -> None:
    images = noise(300)
    unit = images.images.numpy().astype(np.float32) / 255
    for bundle, scores in (
        (gated_bundle, own_logits(unit)),
        (classifier_bundle, logits(PREPROCESSING.normalize(unit))),
    ):
        found = with_ood_detector(bundle, images).ood_detector
        assert found is not None
        assert found.threshold == pytest.approx(fifth_percentile(scores), abs=1e-4)
        assert (found.images, found.false_alarm_rate) == (300, 0.05)
        assert bundle.ood_detector is None  # it is another bundle, and not saved


def test_of_many_images_a_sample_is_enough(gated_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_distribution, "ENOUGH_IMAGES", 40)
    found = with_ood_detector(gated_bundle, noise(300)).ood_detector
    assert found is not None and found.images == 40


def test_without_on_device_logits_it_says_what_has_them(obfuscator_bundle: Bundle, gated_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no on-device logits.*with a gate"):
        with_ood_detector(obfuscator_bundle, noise(20))
    with pytest.raises(BundleError, match=r"\(9, 9\), \(8, 8\) is needed"):
        with_ood_detector(gated_bundle, noise(20, side=9))
