"""The energy score, against numbers worked out by hand, and what a bundle may state of a detector."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.out_of_distribution import OodDetector, energy_score
from sfumato.errors import BundleError


def test_the_energy_score_is_the_log_of_the_sum_of_exponentials() -> None:
    logits = np.log(np.array([[1, 2, 3], [0.25, 0.25, 0.5]])).astype(np.float32)
    assert energy_score(logits) == pytest.approx([math.log(6), 0.0], abs=1e-6)
    assert energy_score(np.array([[1000.0, 1000.0]])) == pytest.approx([1000 + math.log(2)])  # without overflow
    assert energy_score(np.array([[3.0, 3.0, 1.0]])) > energy_score(np.array([[2.0, 2.0, 0.0]]))  # softmax is the same


@pytest.mark.parametrize(("images", "flagged"), [(1000, 50), (100, 5), (19, 0), (1, 0)])
def test_no_more_than_the_rate_of_the_calibrating_images_is_flagged(images: int, flagged: int) -> None:
    logits = np.random.default_rng(0).normal(size=(images, 4)).astype(np.float32)
    detector = OodDetector.calibrated(logits, 0.05)
    assert detector.detects(logits).sum() == flagged
    assert (detector.images, detector.false_alarm_rate) == (images, 0.05)
    assert detector.detects(logits - 20).all()


def edited(bundle: Bundle, folder: Path, detector: Any) -> Path:
    copy = shutil.copytree(bundle.path, folder / "copy")
    manifest = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
    (copy / "bundle.json").write_text(json.dumps({**manifest, "ood_detector": detector}), encoding="utf-8")
    return copy


def test_a_bundle_keeps_its_detector_and_an_old_one_has_none(gated_bundle: Bundle, tmp_path: Path) -> None:
    assert gated_bundle.ood_detector is None
    assert "ood_detector" not in json.loads((gated_bundle.path / "bundle.json").read_text(encoding="utf-8"))
    copy = shutil.copytree(gated_bundle.path, tmp_path / "copy")
    detector = OodDetector(threshold=-1.5, false_alarm_rate=0.05, images=2000)
    replace(Bundle.load(copy), ood_detector=detector).save()
    assert Bundle.load(copy).ood_detector == detector


@pytest.mark.parametrize(
    "detector",
    [
        "on", [], {}, {"threshold": 1.0, "images": 9},
        {"threshold": "x", "false_alarm_rate": 0.05, "images": 9},
        {"threshold": float("nan"), "false_alarm_rate": 0.05, "images": 9},
        {"threshold": 1.0, "false_alarm_rate": 1.5, "images": 9},
        {"threshold": 1.0, "false_alarm_rate": 0.05, "images": -1},
    ],
)  # fmt: skip
def test_a_detector_that_makes_no_sense_is_refused(gated_bundle: Bundle, tmp_path: Path, detector: Any) -> None:
    with pytest.raises(BundleError, match=r"ood_detector|out-of-distribution detector"):
        Bundle.load(edited(gated_bundle, tmp_path, detector))


def test_an_obfuscator_without_on_device_logits_has_none(obfuscator_bundle: Bundle, tmp_path: Path) -> None:
    detector = {"threshold": 1.0, "false_alarm_rate": 0.05, "images": 9}
    with pytest.raises(BundleError, match="only with a gate"):
        Bundle.load(edited(obfuscator_bundle, tmp_path, detector))
