"""The obfuscator on the device: right, and closed when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sfumato.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.device import ObfuscatedPicture, Obfuscator, prepare
from sfumato.errors import BundleError, PictureError
from tiny import PREPROCESSING, SIZE, obfuscate, picture, save_bundles, save_classifier


def test_it_computes_what_its_graph_says(obfuscator_bundle: Bundle) -> None:
    pictures = [picture(seed) for seed in range(3)]
    expected = obfuscate(np.stack([prepare(p, PREPROCESSING) for p in pictures]))
    obfuscator = Obfuscator(obfuscator_bundle.path)
    for got, want in zip(obfuscator.obfuscate_batch(pictures), expected, strict=True):
        assert got.tensor.dtype == np.float32
        assert got.tensor.shape == (3, SIZE, SIZE)
        np.testing.assert_allclose(got.tensor, want, atol=1e-5)
    np.testing.assert_allclose(obfuscator.obfuscate(pictures[1]).tensor, expected[1], atol=1e-5)
    assert obfuscator.obfuscate_batch([]) == []


def test_an_obfuscated_picture_is_read_only_and_silent(obfuscator_bundle: Bundle) -> None:
    got = Obfuscator(obfuscator_bundle).obfuscate(picture())
    with pytest.raises(ValueError, match="read-only"):
        got.tensor[0, 0, 0] = 1
    assert "array" not in repr(got)


@pytest.mark.parametrize("kind", ["identity", "normalised", "nan", "shape"])
def test_it_fails_closed(kind: str, tmp_path: Path) -> None:
    bundle, _ = save_bundles(tmp_path, kind)
    with pytest.raises(BundleError, match="nothing was sent"):
        Obfuscator(bundle).obfuscate(picture())


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
def test_arrays_that_are_no_pictures_are_refused(bad: np.ndarray, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(PictureError):
        Obfuscator(obfuscator_bundle)(bad)


def test_bundles_that_do_not_fit_are_refused(tmp_path: Path, damaged: Path, classifier_bundle: Bundle) -> None:
    for path in (tmp_path / "missing", damaged, classifier_bundle.path):
        with pytest.raises(BundleError):
            Obfuscator(path)
    bundle, _ = save_bundles(tmp_path / "a")
    save_classifier(bundle.path / OBFUSCATOR_ONNX)
    bundle.save()
    with pytest.raises(BundleError, match="not an obfuscator"):
        Obfuscator(bundle)
    (bundle.path / OBFUSCATOR_ONNX).write_bytes(b"no model")
    bundle.save()
    with pytest.raises(BundleError, match="cannot be run"):
        Obfuscator(bundle)


def test_preview_undoes_the_normalisation() -> None:
    pixels = picture(6)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (PREPROCESSING.mean, PREPROCESSING.std))
    tensor = (prepare(pixels, PREPROCESSING) - mean) / std
    np.testing.assert_array_equal(np.asarray(ObfuscatedPicture(tensor, PREPROCESSING).preview()), pixels)


def test_preview_scales_what_leaves_the_range() -> None:
    tensor = np.linspace(-9, 30, 3 * SIZE * SIZE, dtype=np.float32).reshape(3, SIZE, SIZE)
    shown = np.asarray(ObfuscatedPicture(tensor, PREPROCESSING).preview())
    assert (shown.min(), shown.max()) == (0, 255)
    constant = ObfuscatedPicture(np.full((3, SIZE, SIZE), 99, np.float32), PREPROCESSING)
    assert constant.preview().size == (SIZE, SIZE)


def test_importing_the_device_brings_no_heavy_company() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import sfumato.device; took = time.perf_counter() - start;"
        "from sfumato.device import Client, Obfuscator, load_picture;"
        "bad = {'torch', 'onnxruntime', 'sfumato.nets', 'sfumato.training', 'sfumato.cloud'} & set(sys.modules);"
        "assert not bad, bad; assert took < 0.5, took"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
