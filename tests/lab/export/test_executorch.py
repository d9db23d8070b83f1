"""The ExecuTorch program of a bundle against its ONNX file, which ONNX Runtime runs here by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import BundleError
from sfumato.lab.export.executorch import ExecutorchFunction, compare, export_executorch, sample_images
from sfumato.lab.export.onnx import TOLERANCE
from sfumato.lab.models import Obfuscator

NEEDS_EXECUTORCH = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs the extra: pip install 'sfumato[executorch]'"
)
SHIPPED = {"sketch": shipped.obfuscator_bundle(), "obfuscator": shipped.papers_obfuscator_bundle()}


def by_hand(bundle: Bundle, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(bundle.file(OBFUSCATOR_ONNX)), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})


def outputs(images: int = 4) -> list[np.ndarray]:
    """As a sketch makes them."""
    random = np.random.default_rng(3)
    decoded = random.normal(size=(images, 3, 2, 2)).astype(np.float32)
    own = np.eye(5, dtype=np.float32)[np.arange(images) % 5] * 3
    return [decoded, own, np.arange(images, dtype=np.uint8)[:, None]]


def copied(name: str, folder: Path) -> Bundle:
    return Bundle.load(shutil.copytree(SHIPPED[name], folder / name))


def test_equal_outputs_are_the_same():
    compared = compare(outputs(), outputs())
    assert compared.same
    assert (compared.images, compared.largest_difference) == (4, 0)
    assert compared.codes_changed == compared.device_predictions_changed == 0
    assert compared.cloud_predictions_changed is None


def test_a_difference_is_relative_to_the_largest_number_of_its_output():
    wanted = [np.array([[[[200.0, 0.0]]]], np.float32)]
    found = [np.array([[[[200.0, 0.01]]]], np.float32)]
    compared = compare(found, wanted)
    assert compared.largest_difference == pytest.approx(0.01 / 200)
    assert compared.same and compared.codes_changed is None
    assert not compare([found[0] + 1], wanted).same


def test_numbers_that_are_none_are_not_the_same():
    found = outputs()
    found[0][1, 0, 0, 0] = np.nan
    assert not compare(found, outputs()).same


def test_an_image_with_another_code_counts_as_such_and_its_payload_is_not_compared():
    found, wanted = outputs(200), outputs(200)
    found[2][7] += 1
    found[0][7] += 5
    compared = compare(found, wanted)
    assert compared.codes_changed == 1 and compared.largest_difference == 0
    assert compared.same  # 1 in 200 lies on the edge
    found[2][:3] += 1
    assert not compare(found, wanted).same


def test_logits_count_whatever_the_code_is():
    found = outputs()
    found[1][2] = found[1][2][::-1] * 0.5
    compared = compare(found, outputs())
    assert not compared.same


def test_predictions_that_change_are_counted():
    found, wanted = outputs(), outputs()
    found[1][1] = np.roll(found[1][1], 1)
    found[0][3] *= -1
    compared = compare(found, wanted, classify=lambda decoded: decoded.reshape(len(decoded), -1))
    assert compared.device_predictions_changed == 1
    assert compared.cloud_predictions_changed == 1


def test_outputs_of_another_number_or_type_are_refused():
    with pytest.raises(BundleError, match="ONNX file"):
        compare(outputs()[:1], outputs())
    with pytest.raises(BundleError, match="int64"):
        compare([*outputs()[:2], outputs()[2].astype(np.int64)], outputs())


@pytest.mark.skipif(find_spec("executorch") is not None, reason="ExecuTorch is installed")
def test_without_executorch_the_command_says_what_to_install(tmp_path: Path):
    done = CliRunner().invoke(app, ["export", str(SHIPPED["sketch"]), "-o", str(tmp_path / "net.pte")])
    assert "pip install 'sfumato[executorch]'" in str(done.exception)
    assert not list(tmp_path.iterdir())


@NEEDS_EXECUTORCH
@pytest.mark.parametrize("name", SHIPPED)
def test_the_program_gives_the_onnx_files_outputs_in_its_order(name: str, tmp_path: Path):
    file, bundle = tmp_path / "new" / "net.pte", Bundle.load(SHIPPED[name])
    said = CliRunner().invoke(app, ["export", str(bundle.path), "--to", "executorch", "-o", str(file), "--json"])
    assert said.exit_code == 0, said.output
    result = json.loads(said.stdout)
    assert result["bytes"] == file.stat().st_size and result["images"] == len(shipped.samples())
    assert result["cloud_predictions_changed"] == 0

    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    found, wanted = ExecutorchFunction(file).all(images), by_hand(bundle, images)
    assert [part.dtype for part in found] == [part.dtype for part in wanted]
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    assert len(found) == (3 if name == "sketch" else 1)


@NEEDS_EXECUTORCH
def test_a_network_that_differs_from_the_onnx_file_is_not_written(tmp_path: Path):
    bundle = copied("obfuscator", tmp_path)
    weights = load_file(bundle.file(OBFUSCATOR_WEIGHTS))
    last = list(weights)[-1]
    save_file(
        {**weights, last: weights[last] + 10 * TOLERANCE * (1 + weights[last].abs().max())},
        bundle.file(OBFUSCATOR_WEIGHTS),
    )
    bundle = bundle.save()
    file = tmp_path / "net.pte"
    file.write_text("before")
    with pytest.raises(BundleError, match=r"differs from its ONNX file .* nothing was written"):
        export_executorch(bundle, file, sample_images(bundle.preprocessing))
    assert file.read_text() == "before" and not list(tmp_path.glob("*.partial"))


@NEEDS_EXECUTORCH
def test_a_file_that_exists_stays_without_overwrite(tmp_path: Path):
    file = tmp_path / "net.pte"
    file.write_text("before")
    done = CliRunner().invoke(app, ["export", str(SHIPPED["sketch"]), "-o", str(file)])
    assert "--overwrite" in str(done.exception) and file.read_text() == "before"


@pytest.mark.parametrize("kind", ["baseline", None])
def test_what_train_did_not_make_is_refused(kind: Any, tmp_path: Path):
    bundle = copied("obfuscator", tmp_path)
    bundle = replace(bundle, recipe=bundle.recipe.updated(kind=kind))
    with pytest.raises(BundleError, match="no network that can be exported"):
        export_executorch(bundle, tmp_path / "net.pte", sample_images(bundle.preprocessing))


def test_noise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.lab.export.executorch.rebuilt", lambda bundle: Obfuscator(noisy=True))
    bundle = Bundle.load(SHIPPED["obfuscator"])
    with pytest.raises(BundleError, match="noise"):
        export_executorch(bundle, tmp_path / "net.pte", sample_images(bundle.preprocessing))
    assert not list(tmp_path.iterdir())


@NEEDS_EXECUTORCH
def test_what_is_no_program_is_refused(tmp_path: Path):
    file = tmp_path / "net.pte"
    file.write_bytes(b"no program")
    with pytest.raises(BundleError, match="cannot load"):
        ExecutorchFunction(file)


def test_the_samples_are_of_the_bundles_size():
    size = Bundle.load(SHIPPED["sketch"]).preprocessing
    images = sample_images(size)
    assert images.shape == (40, 3, 32, 32) and images.dtype == np.float32
    np.testing.assert_allclose(images[0], shipped.samples()[0].pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    assert torch.from_numpy(images).max() <= 1
