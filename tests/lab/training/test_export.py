"""The ONNX files of a bundle against the networks that they were made from."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sfumato
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.lab_files import lab_file, lab_folder
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import TrainingError
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.export.onnx import difference, export_onnx, renew, round_weights
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, build_classifier
from sfumato.lab.training.export import write_classifier_bundle
from sfumato.lab.training.tasks import ClassifierTask
from synthetic import pixels

IMAGES = torch.from_numpy(pixels(9, seed=4).transpose(0, 3, 1, 2).copy()).float() / 255
FILES = ("model.onnx", "obfuscator.onnx", "deobfuscator.onnx")


@pytest.fixture(scope="module")
def nets(trained) -> tuple[nn.Module, nn.Module]:
    """(obfuscator, deobfuscator) with the bundle's weights."""
    pair = (Obfuscator().eval(), Deobfuscator().eval())
    for net, name in zip(pair, ("obfuscator", "deobfuscator"), strict=True):
        net.load_state_dict(load_file(lab_file(trained[1], f"{name}.safetensors")))
    return pair


def file(trained: tuple[Bundle, Bundle], name: str) -> Path:
    return trained[0].file(name) if name == "model.onnx" else lab_file(trained[1], name)


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: batch})
    return result


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to a thousandth of what distinguishes one output from another."""
    assert got.shape == expected.shape and got.dtype == np.float32
    assert np.abs(got - expected).max() <= 1e-3 * expected.std()


def normalise(trained: tuple[Bundle, Bundle], images: torch.Tensor) -> torch.Tensor:
    preprocessing = trained[0].preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_obfuscators_file_takes_images_and_gives_the_classifiers_input(trained, nets, count):
    with torch.no_grad():
        expected = normalise(trained, nets[0](IMAGES[:count])).numpy()
    got = run(file(trained, "obfuscator.onnx"), IMAGES[:count].numpy())
    assert_same(got, expected)


@pytest.mark.parametrize("count", [1, 9])
def test_the_deobfuscators_file_takes_what_the_obfuscators_gives(trained, nets, count):
    with torch.no_grad():
        expected = nets[1](nets[0](IMAGES[:count])).numpy()
    payload = run(file(trained, "obfuscator.onnx"), IMAGES[:count].numpy())
    got = run(file(trained, "deobfuscator.onnx"), payload)
    assert_same(got, expected)


@pytest.mark.parametrize("count", [1, 9])
def test_the_classifiers_file_takes_plain_and_obfuscated_images_alike(trained, count):
    net = load_classifier(trained[0].path).net
    for inputs in (
        normalise(trained, IMAGES[:count]),
        torch.from_numpy(run(file(trained, "obfuscator.onnx"), IMAGES[:count].numpy())),
    ):
        with torch.no_grad():
            expected = net(inputs).numpy()
        got = run(file(trained, "model.onnx"), inputs.numpy())
        assert_same(got, expected)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_whole_valid_and_leaves_the_number_of_images_open(trained, name):
    path = file(trained, name)
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    for value in (*model.graph.input, *model.graph.output):
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param and not first.dim_value
        assert [d.dim_value for d in rest] == ([4] if value.name == "logits" else [3, 32, 32])


@pytest.mark.parametrize("name", FILES)
def test_a_file_tells_nothing_of_the_machine_that_made_it(trained, name):
    model = onnx.load(str(file(trained, name)))
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # numbers spell anything sooner or later
    content = model.SerializeToString()
    here = {str(Path(sfumato.__file__).parents[1]), str(Path.home()), str(file(trained, name).parent), os.sys.prefix}
    for trace in {*here, "/home", "/root", "/tmp", "site-packages", "sfumato/lab", ".py"} - {"/"}:
        assert trace.encode() not in content, trace


def test_a_bundle_holds_what_its_kind_needs_and_nothing_loose(trained):
    assert set(trained[0].files) == {"model.onnx", "weights.safetensors"}
    assert set(trained[1].files) == {"obfuscator.onnx"}
    kept = {"lab.json", "obfuscator.safetensors", "deobfuscator.onnx", "deobfuscator.safetensors"}
    assert {p.name for p in lab_folder(trained[1].path).iterdir()} == kept
    for bundle in trained:
        assert {p.name for p in bundle.path.iterdir()} == {*bundle.files, "bundle.json"}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    net = small_net()
    images = IMAGES[:3, :, :8, :8]
    net(images)

    def change(path: Path) -> None:
        model = onnx.load(str(path))
        weights = model.graph.initializer[0]
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.01, weights.name))
        onnx.save(model, str(path))

    monkeypatch.setattr("sfumato.lab.export.onnx._strip", change)
    with pytest.raises(TrainingError, match="differs from torch"):
        export_onnx(net, tmp_path / "x.onnx", images, input_name="x", output_name="y")


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        renew(tmp_path / "file" / "bundle")


def test_an_older_bundle_is_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old.onnx").touch()
    renew(tmp_path / "bundle")
    assert list((tmp_path / "bundle").iterdir()) == []


def test_what_is_rounded_may_fall_to_either_side_of_an_edge_but_rarely_and_by_one_step():
    expected = np.zeros(1000, np.float32)
    got = expected.copy()
    got[:10] = 0.02
    assert difference(got, expected) == pytest.approx(0.02)
    assert difference(got, expected, step=0.02) == 0
    assert difference(got, expected, step=0.01) == pytest.approx(0.02), "two steps are too many"
    got[:11] = 0.02
    assert difference(got, expected, step=0.02) == pytest.approx(0.02), "so are many numbers"


def test_weights_in_half_precision_are_half_the_size_and_the_file_computes_with_them(tmp_path, trained):
    task = ClassifierTask(build_classifier("vgg7", 4), Normalize((0.5,) * 3, (0.25,) * 3)).eval()
    options = {"name": "x", "labels": ("a", "b", "c", "d"), "preprocessing": trained[0].preprocessing}
    whole = write_classifier_bundle(
        tmp_path / "whole", task, IMAGES, recipe=RecipeRecord(architecture="vgg7"), **options
    )
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    recipe = RecipeRecord(kind="classifier", architecture="vgg7")
    halved = write_classifier_bundle(tmp_path / "half", task, IMAGES, recipe=recipe, half=True, **options)
    large, small = (bundle.file("weights.safetensors").stat().st_size for bundle in (whole, halved))
    assert small < 0.51 * large
    net = load_classifier(halved.path).net
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-7)
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        expected = net(task.normalize(IMAGES)).numpy()
    assert_same(run(halved.file("model.onnx"), task.normalize(IMAGES).numpy()), expected)


def test_weights_beyond_half_precision_are_refused():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = 1e6
    with pytest.raises(TrainingError, match=r"weight has values beyond the range of half precision"):
        round_weights(net)
