"""The obfuscator on the device: right, and closed when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.device import Decision, ObfuscatedImage, Obfuscator, prepare
from sfumato.errors import BundleError, ImageError
from tiny import (
    PREPROCESSING,
    SIZE,
    image,
    obfuscate,
    own_logits,
    save_bundles,
    save_classifier,
    sure_image,
    unsure_image,
)


def test_it_computes_what_its_graph_says(obfuscator_bundle: Bundle) -> None:
    images = [image(seed) for seed in range(3)]
    expected = obfuscate(np.stack([prepare(p, PREPROCESSING) for p in images]))
    obfuscator = Obfuscator(obfuscator_bundle.path)
    for got, want in zip(obfuscator.obfuscate_batch(images), expected, strict=True):
        assert got.tensor.dtype == np.float32
        assert got.tensor.shape == (3, SIZE, SIZE)
        np.testing.assert_allclose(got.tensor, want, atol=1e-5)
    np.testing.assert_allclose(obfuscator.obfuscate(images[1]).tensor, expected[1], atol=1e-5)
    assert obfuscator.obfuscate_batch([]) == []


def test_an_obfuscated_image_is_read_only_and_silent(obfuscator_bundle: Bundle) -> None:
    got = Obfuscator(obfuscator_bundle).obfuscate(image())
    with pytest.raises(ValueError, match="read-only"):
        got.tensor[0, 0, 0] = 1
    assert "array" not in repr(got)


@pytest.mark.parametrize("kind", ["identity", "normalised", "nan", "shape"])
def test_it_fails_closed(kind: str, tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, kind)
    with pytest.raises(BundleError, match="nothing was sent"):
        Obfuscator(bundle).obfuscate(image())


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 3, SIZE, SIZE)),
        np.zeros((3, SIZE, SIZE), np.float32),
        np.zeros((1, 3, SIZE, SIZE + 1), np.float32),
        np.full((1, 3, SIZE, SIZE), 1.01, np.float32),
        np.full((1, 3, SIZE, SIZE), -0.01, np.float32),
        np.full((1, 3, SIZE, SIZE), np.nan, np.float32),
    ],
)
def test_arrays_that_are_no_images_are_refused(bad: np.ndarray, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(ImageError):
        Obfuscator(obfuscator_bundle)(bad)


def test_bundles_that_do_not_fit_are_refused(tmp_path: Path, damaged: Path, classifier_bundle: Bundle) -> None:
    for path in (tmp_path / "missing", damaged, classifier_bundle.path):
        with pytest.raises(BundleError):
            Obfuscator(path)
    bundle, _ = save_bundles(tmp_path / "a")
    save_classifier(bundle.path / OBFUSCATOR_ONNX)
    bundle = bundle.save()
    with pytest.raises(BundleError, match="not an obfuscator"):
        Obfuscator(bundle)
    (bundle.path / OBFUSCATOR_ONNX).write_bytes(b"no model")
    bundle = bundle.save()
    with pytest.raises(BundleError, match="cannot be run"):
        Obfuscator(bundle)


def test_preview_undoes_the_normalisation() -> None:
    pixels = image(6)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (PREPROCESSING.mean, PREPROCESSING.std))
    tensor = (prepare(pixels, PREPROCESSING) - mean) / std
    np.testing.assert_array_equal(np.asarray(ObfuscatedImage(tensor, PREPROCESSING).preview()), pixels)


def test_preview_scales_what_leaves_the_range() -> None:
    tensor = np.linspace(-9, 30, 3 * SIZE * SIZE, dtype=np.float32).reshape(3, SIZE, SIZE)
    shown = np.asarray(ObfuscatedImage(tensor, PREPROCESSING).preview())
    assert (shown.min(), shown.max()) == (0, 255)
    constant = ObfuscatedImage(np.full((3, SIZE, SIZE), 99, np.float32), PREPROCESSING)
    assert constant.preview().size == (SIZE, SIZE)


def test_importing_the_device_brings_no_heavy_company() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import sfumato.device; took = time.perf_counter() - start;"
        "from sfumato.device import Client, Obfuscator, load_image;"
        "bad = {'torch', 'onnxruntime', 'sfumato.lab', 'sfumato.cloud'} & set(sys.modules);"
        "assert not bad, bad; assert took < 0.5, took"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- with a gate ----------------------------------------------------------------------------------

COLOURS = {  # name: (RGB, the probability of the likeliest class, exactly)
    "black": ((0, 0, 0), 0.25),
    "yellow": ((255, 255, 0), 0.5),
    "red": ((255, 0, 0), 1.0),
}


def coloured(name: str) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), COLOURS[name][0], np.uint8)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("threshold", "sent"),
    [
        (0.0, set()),
        (0.25, set()),
        (np.nextafter(0.25, 1), {"black"}),
        (0.5, {"black"}),
        (np.nextafter(0.5, 1), {"black", "yellow"}),
        (1.0, {"black", "yellow"}),
    ],
)
def test_at_the_threshold_an_image_is_not_sent(threshold: float, sent: set[str], tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=float(threshold))
    decisions = Obfuscator(bundle.path).decide_batch([coloured(name) for name in COLOURS])
    for (name, (_, probability)), decision in zip(COLOURS.items(), decisions, strict=True):
        assert decision.probabilities is not None
        assert max(decision.probabilities) == probability
        assert (decision.obfuscated is not None) == (name in sent)


def test_a_mixed_batch_is_decided_in_order(tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.9)
    images = [unsure_image(0), sure_image(1), sure_image(2), unsure_image(3)]
    unit = np.stack([prepare(pixels, PREPROCESSING) for pixels in images])
    obfuscator = Obfuscator(bundle)
    decisions = obfuscator.decide_batch(iter(images))
    for decision, probabilities in zip(decisions, softmax(own_logits(unit)), strict=True):
        np.testing.assert_allclose(decision.probabilities, probabilities, atol=1e-4)
    sent = [decision.obfuscated for decision in decisions]
    assert [image is None for image in sent] == [False, True, True, False]
    for index in (0, 3):
        np.testing.assert_allclose(sent[index].tensor, obfuscate(unit)[index], atol=1e-5)
    assert obfuscator.decide_batch([]) == []


def test_obfuscating_does_not_ask_the_gate(tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.0)
    unit = prepare(sure_image(), PREPROCESSING)[None]
    obfuscator = Obfuscator(bundle)
    np.testing.assert_allclose(obfuscator(unit), obfuscate(unit), atol=1e-5)
    np.testing.assert_allclose(obfuscator.obfuscate(sure_image()).tensor, obfuscate(unit)[0], atol=1e-5)
    (decision,) = obfuscator.decide_batch([sure_image()], gate=False)
    np.testing.assert_allclose(decision.obfuscated.tensor, obfuscate(unit)[0], atol=1e-5)
    assert decision.probabilities[0] > 0.999


def test_without_a_gate_everything_is_to_be_sent(obfuscator_bundle: Bundle) -> None:
    (decision,) = Obfuscator(obfuscator_bundle).decide_batch([sure_image()])
    assert decision.probabilities is None
    assert decision.obfuscated is not None


def test_a_decision_shows_no_pixels_and_is_not_empty(tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.9)
    (decision,) = Obfuscator(bundle).decide_batch([unsure_image()])
    assert "array" not in repr(decision)
    with pytest.raises(ValueError, match="needs its prediction"):
        Decision(None, None)


@pytest.mark.parametrize("own", ["nan", "rows", "columns"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_an_own_answer_that_is_none_fails_closed(own: str, threshold: float, tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=threshold, own=own)
    with pytest.raises(BundleError, match=r"on-device logits.*nothing was sent"):
        Obfuscator(bundle)


@pytest.mark.parametrize("kind", ["identity", "normalised", "nan", "shape"])
def test_a_gate_does_not_excuse_an_obfuscator_that_does_not_hide(kind: str, tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, kind, threshold=0.0)
    with pytest.raises(BundleError, match="nothing was sent"):
        Obfuscator(bundle).decide_batch([sure_image()])


@pytest.mark.parametrize("own", [None, "fixed columns", "images", "three outputs"])
def test_a_gate_needs_a_second_output_of_the_right_shape(own: str | None, tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.5, own=own)
    with pytest.raises(BundleError, match=r"does not fit the bundle's gate: a second float output \(N, 4\)"):
        Obfuscator(bundle)


def test_a_second_output_without_a_gate_is_refused(tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.5)
    with pytest.raises(BundleError, match="states no gate"):
        Obfuscator(replace(bundle, gate=None))


def test_a_gate_needs_labels(tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.5)
    with pytest.raises(BundleError, match="does not fit the bundle's gate"):
        Obfuscator(replace(bundle, labels=()))
