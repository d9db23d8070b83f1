import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.artifacts.files import file_sha256
from sfumato.errors import BundleError
from sfumato.lab.classifiers import load_classifier


@pytest.fixture
def folder(tmp_path, trained) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(trained[0].path, tmp_path / "bundle")


def edit_recipe(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["recipe"].update(changes)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def rehash(folder: Path) -> None:
    """Makes the manifest fit the files again, as if such a bundle had been made."""
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"] = {name: file_sha256(folder / name) for name in manifest["files"] if (folder / name).is_file()}
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_a_loaded_classifier_is_frozen_and_knows_what_it_is(trained):
    bundle, _ = trained
    frozen = load_classifier(bundle.path)
    assert not any(module.training for module in frozen.net.modules())
    assert not any(p.requires_grad for p in frozen.net.parameters())
    assert (frozen.name, frozen.labels, frozen.preprocessing) == (bundle.name, bundle.labels, bundle.preprocessing)
    assert frozen.fingerprint == bundle.classifier_fingerprint


def test_a_loaded_classifier_computes_what_the_served_file_does(trained):
    bundle, _ = trained
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(bundle.file("model.onnx")))
    (served,) = session.run(None, {"input": inputs.numpy()})
    assert np.allclose(load_classifier(bundle.path).net(inputs).numpy(), served, atol=1e-4)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet21", None, 3])
def test_another_architecture_than_the_weights_is_refused(folder, architecture):
    edit_recipe(folder, architecture=architecture)
    with pytest.raises(BundleError, match=r"do not fit architecture|must be of type str"):
        load_classifier(folder)


def test_weights_of_something_else_are_refused(folder):
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "more": torch.zeros(1)}, folder / "weights.safetensors")
    rehash(folder)
    with pytest.raises(BundleError, match="do not fit"):
        load_classifier(folder)


def test_weights_that_are_none_are_refused(folder):
    (folder / "weights.safetensors").write_bytes(b"no weights")
    rehash(folder)
    with pytest.raises(BundleError, match="do not fit"):
        load_classifier(folder)


def test_a_bundle_without_weights_is_refused(folder):
    (folder / "weights.safetensors").unlink()
    rehash(folder)
    with pytest.raises(BundleError, match=r"has no weights\.safetensors"):
        load_classifier(folder)
