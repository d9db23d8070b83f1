import numpy as np
import pytest
import torch

import tiny
from audit_bundles import SIZE, images, written
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX
from sfumato.errors import AuditError, BundleError
from sfumato.lab.audit.targets import load_target, native_size
from sfumato.lab.baselines import METHODS

MODULE = """
import numpy as np
import torch
from torch import nn

class Half(nn.Module):
    def forward(self, x):
        return x / 2

half = Half()
two = 2

def in_torch(x):
    return 1 - x

def in_numpy(x):
    return np.asarray(x)[:, :1]

def wrong(x):
    return x[0]

def endless(x):
    return x / 0

def broken(x):
    raise KeyError("colour")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"filters_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_swapped_weights_in_a_second_file_are_another_target(tmp_path):
    """Otherwise an audit would be resumed, or quoted, for what it never attacked."""
    import onnx

    model = onnx.load(tiny.save_obfuscator(tmp_path / "one.onnx"))
    two, data = tmp_path / "two.onnx", tmp_path / "two.data"
    (mix,) = (tensor for tensor in model.graph.initializer if tensor.name == "mix")
    onnx.external_data_helper.set_external_data(mix, location="two.data")
    onnx.save(model, two)
    target = load_target(str(two), size=(tiny.SIZE, tiny.SIZE))
    assert target.fingerprint == load_target(str(two), size=(tiny.SIZE, tiny.SIZE)).fingerprint
    data.write_bytes(data.read_bytes()[::-1])
    assert load_target(str(two), size=(tiny.SIZE, tiny.SIZE)).fingerprint != target.fingerprint


def test_any_onnx_file(tmp_path):
    path = tiny.save_obfuscator(tmp_path / "mix.onnx")
    assert native_size(str(path)) == (tiny.SIZE, tiny.SIZE)
    target = load_target(str(path), size=(tiny.SIZE, tiny.SIZE))
    x = images(size=(tiny.SIZE, tiny.SIZE))
    assert np.allclose(target.payload(x).numpy(), tiny.obfuscate(x.numpy()), atol=1e-5)
    assert target.module is None and not target.stochastic


@pytest.mark.parametrize("name", ["half", "Half", "in_torch"])
def test_a_python_callable_with_gradients(module, name):
    target = load_target(f"{module}:{name}", size=SIZE)
    x = images().requires_grad_()
    assert target.module is not None
    (slope,) = torch.autograd.grad(target.module(x).sum(), x)
    assert torch.equal(slope, torch.full_like(x, -1.0 if name == "in_torch" else 0.5))
    assert not target.payload(x).requires_grad


def test_a_python_callable_without_gradients(module):
    target = load_target(f"{module}:in_numpy", size=SIZE)
    assert target.module is None
    assert torch.equal(target.payload(images()), images()[:, :1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "is a int; a callable"),
        ("three", "cannot be imported"),
        ("wrong", r"gives \(3, 16, 16\) for 4 images"),
        ("endless", "not finite"),
        ("broken", "fails on images .* 'colour'"),
    ],
)
def test_what_is_no_obfuscator_is_refused(module, name, message):
    with pytest.raises(AuditError, match=message):
        load_target(f"{module}:{name}", size=SIZE)


@pytest.mark.parametrize("given", ["nowhere", "nowhere.onnx", "no_such_module:f"])
def test_what_is_not_there_is_named(given):
    with pytest.raises(AuditError, match=given.split(":")[0]):
        load_target(given, size=SIZE)


def test_a_classifiers_bundle_is_no_obfuscator(tmp_path):
    _, classifier = tiny.save_bundles(tmp_path)
    with pytest.raises(BundleError, match="'obfuscator' is needed"):
        load_target(str(classifier.path), size=SIZE)


@pytest.mark.parametrize("name", ["blur", "noise", "scramble-pixels"])
def test_a_baseline_is_loaded_with_gradients_and_noise(tmp_path, name):
    target = load_target(str(written(tmp_path, name).path), size=SIZE)
    assert target.name == name and target.module is not None
    assert target.stochastic == METHODS[name].stochastic
    if not target.stochastic:
        assert torch.allclose(target.payload(images()), target.module(images()), atol=1e-4)


def test_a_sketchs_mean_images_are_no_joint_deobfuscator():
    target = load_target(str(shipped.papers_obfuscator_bundle()), size=(32, 32))
    assert tuple(target.deobfuscator(target.payload(images(size=(32, 32)))).shape) == (3, 3, 32, 32)
    assert load_target(str(shipped.obfuscator_bundle()), size=(32, 32)).deobfuscator is None


def test_the_recipe_with_another_seed_is_another_key(tmp_path):
    target = load_target(str(written(tmp_path, "scramble-pixels").path), size=SIZE)
    other = target.refit(1)
    assert not torch.allclose(other.payload(images()), target.payload(images()), atol=0.1)


def test_weights_that_are_not_those_of_the_onnx_file_are_refused(tmp_path):
    blur, pixels = written(tmp_path / "a", "blur"), written(tmp_path / "b", "pixelate")
    (blur.path / OBFUSCATOR_ONNX).write_bytes((pixels.path / OBFUSCATOR_ONNX).read_bytes())
    blur = blur.save()
    with pytest.raises(AuditError, match="its weights and its ONNX file differ"):
        load_target(str(blur.path), size=SIZE)
