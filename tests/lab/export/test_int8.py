"""8-bit integers of obfuscators: what the new bundle holds, what is measured of it, and what an audit attacks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import (
    CLASSIFIER_ONNX,
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    FLOAT_WEIGHTS,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.files import file_sha256
from sfumato.artifacts.lab_files import lab_file, lab_folder, save_lab
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device import Obfuscator
from sfumato.errors import AuditError, BundleError, RecipeError
from sfumato.lab.audit.targets import load_target
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import Evaluation
from sfumato.lab.export import int8
from sfumato.lab.export.int8 import Int8Comparison, differences, quantize, quantize_file, remarks
from sfumato.lab.training import load_recipe
from sfumato.lab.training.setup import starting_from
from synthetic import image_set

RECIPES = Path(__file__).parents[3] / "recipes"


def small_images(count: int, seed: int = 0) -> ImageSet:
    """Noise in which every fourth image is red, green, blue or black: what the tiny bundles tell apart."""
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, tiny.SIZE, tiny.SIZE), np.uint8))
    labels = torch.arange(count) % 4
    for place, label in enumerate(labels.tolist()):
        if label < 3:
            images[place, label] |= 128
    return ImageSet(images, labels, tiny.LABELS, "noise", f"noise-{count}-{seed}")


@pytest.fixture(scope="module")
def samples() -> ImageSet:
    """The shipped images, with the shipped classifier's classes."""
    shown, names = shipped.samples(), Bundle.load(shipped.classifier_bundle()).labels
    images = torch.from_numpy(np.stack([sample.pixels.transpose(2, 0, 1) for sample in shown]))
    return ImageSet(images, torch.tensor([names.index(sample.label) for sample in shown]), names, "sheet", "sheet")


@pytest.fixture(scope="module")
def classifier() -> Bundle:
    return Bundle.load(shipped.classifier_bundle())


@pytest.fixture(scope="module")
def original() -> Bundle:
    return Bundle.load(shipped.obfuscator_bundle())


@pytest.fixture(scope="module")
def integers(tmp_path_factory, original, classifier, samples) -> Bundle:
    """The shipped sketch in 8-bit integers."""
    return quantize(original, tmp_path_factory.mktemp("made") / "int8", classifier, image_set(40), samples)


def test_the_files_and_what_is_copied(original, integers):
    assert set(integers.files) == {OBFUSCATOR_ONNX, DECODER_ONNX}
    assert file_sha256(lab_file(integers, FLOAT_WEIGHTS)) == original.files[OBFUSCATOR_WEIGHTS]
    assert file_sha256(lab_file(integers, DEOBFUSCATOR_ONNX)) == original.files[DEOBFUSCATOR_ONNX]
    assert integers.files[DECODER_ONNX] == original.files[DECODER_ONNX]
    for same in ("gate", "code_fingerprint", "labels", "preprocessing", "classifier_fingerprint", "name"):
        assert getattr(integers, same) == getattr(original, same)
    assert not list(integers.path.parent.glob("*.partial*"))


def test_it_says_what_it_was_made_of_and_holds_no_audit(original, integers):
    assert original.figures.audit is not None and integers.figures.audit is None
    assert (integers.recipe.quantized is not None) and not (original.recipe.quantized is not None)
    said = integers.recipe.quantized
    assert said["from"] == {
        "name": "cifar10-resnet20-sketch",
        "fingerprint": f"sha256:{original.files[OBFUSCATOR_ONNX]}",
    }
    assert (said["calibrated_on"], said["data"]) == (40, "synthetic")
    assert integers.recipe.name == "cifar10-resnet20-sketch-int8", "an audit by name must not find the original's"
    assert integers.provenance.others["training"] == original.provenance.to_json()


def test_convolutions_are_in_integers_that_compute_nearly_the_same(original, integers, samples):
    graph = onnx.load(str(integers.file(OBFUSCATOR_ONNX))).graph
    scaled = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert weights and set(weights) <= scaled
    kinds = [value.data_type for value in graph.initializer if value.name.endswith("_quantized")]
    assert onnx.TensorProto.INT8 in kinds
    images = samples.images.numpy().astype(np.float32) / 255
    new, old = (OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).all(images)[1] for bundle in (integers, original))
    assert (new.argmax(axis=1) == old.argmax(axis=1)).mean() > 0.8 and np.abs(new - old).max() > 1e-3


def test_the_figures_are_those_of_the_new_file(integers, original, classifier, samples):
    """Against ONNX Runtime itself, one image at a time."""
    run = {
        name: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for name, file in (
            ("new", integers.file(OBFUSCATOR_ONNX)),
            ("old", original.file(OBFUSCATOR_ONNX)),
            ("cloud", classifier.file(CLASSIFIER_ONNX)),
        )
    }
    predictions: dict[str, list[int]] = {"new": [], "old": []}
    codes: dict[str, list[bytes]] = {"new": [], "old": []}
    for image in samples.images.numpy().astype(np.float32)[:, None] / 255:
        for name in predictions:
            drawn, _, code = run[name].run(None, {run[name].get_inputs()[0].name: image})
            predictions[name].append(int(run["cloud"].run(None, {"input": drawn})[0].argmax()))
            codes[name].append(code.tobytes())
    correct = {name: np.mean(np.array(found) == samples.labels.numpy()) for name, found in predictions.items()}
    figures, compared = Evaluation.from_json(integers.figures.to_json()), Int8Comparison.of(integers)
    assert figures.accuracy_obfuscated == pytest.approx(correct["new"])
    assert compared.accuracy_obfuscated_before == pytest.approx(correct["old"])
    changed = np.array(predictions["new"]) != np.array(predictions["old"])
    assert compared.predictions_changed == pytest.approx(np.mean(changed))
    assert compared.codes_changed == pytest.approx(np.mean(np.array(codes["new"]) != np.array(codes["old"])))
    assert compared.offload_rate_before > 0 and compared.time_of_float32 > 0
    assert compared.megabytes < compared.megabytes_before / 2


def test_the_split_form_is_decoded_by_the_originals_decoder(integers, original, samples):
    images = samples.images.numpy().astype(np.float32) / 255
    code = Obfuscator(integers, split=True)(images)
    decoded = OnnxFunction(original.file(DECODER_ONNX))(code)
    apart = np.abs(Obfuscator(integers)(images) - decoded).mean() / decoded.std()
    assert 0 < apart < 0.05


def test_an_audit_attacks_the_file_with_gradients_and_keeps_the_bound(integers, original, samples):
    size = (32, 32)
    target = load_target(str(integers.path), size=size)
    of_float = load_target(str(original.path), size=size)
    images = samples.images.float() / 255
    file = OnnxFunction(integers.file(OBFUSCATOR_ONNX))(images.numpy())
    assert target.name == "cifar10-resnet20-sketch-int8" and target.fingerprint == integers.files[OBFUSCATOR_ONNX]
    assert np.array_equal(target.payload(images).numpy(), file)
    assert target.module.code_bits == of_float.module.code_bits == 8
    pixels = images.clone().requires_grad_()
    out = target.module(pixels)
    assert np.allclose(out.detach().numpy(), file, atol=1e-5), "the file's values, not those of the weights"
    assert np.abs(out.detach().numpy() - of_float.module(images).numpy()).max() > 1e-2
    assert float(torch.autograd.grad(out.square().sum(), pixels)[0].abs().sum()) > 0
    assert target.gate is not None


def test_an_audit_refuses_weights_that_it_was_not_made_of(trained, tmp_path):
    classifier, obfuscator = trained
    images = replace(image_set(12), names=classifier.labels)
    made = quantize(obfuscator, tmp_path / "int8", classifier, images, images)
    assert load_target(str(made.path), size=(32, 32)).module is not None
    file = lab_file(made, FLOAT_WEIGHTS)
    save_file({name: 3 * value + 1 for name, value in load_file(file).items()}, file)
    save_lab(made)
    with pytest.raises(AuditError, match="far from what it was made of"):
        load_target(str(made.path), size=(32, 32))


def test_an_audit_refuses_payloads_that_are_not_those_of_the_code(integers, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(integers.path, folder)
    model = onnx.load(str(folder / OBFUSCATOR_ONNX))
    decoded = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    decoded.output[0] = "decoded"
    image = model.graph.input[0].name
    model.graph.node.append(onnx.helper.make_node("Add", ["decoded", image], [model.graph.output[0].name]))
    onnx.save(model, str(folder / OBFUSCATOR_ONNX))
    shutil.copytree(lab_folder(integers.path), lab_folder(folder))
    save_lab(replace(integers, path=folder, files={}).save())
    with pytest.raises(AuditError, match="far from what it was made of"):
        load_target(str(folder), size=(32, 32))


def test_it_cannot_be_trained_from_nor_quantised_again(integers, classifier, samples, tmp_path):
    recipe = load_recipe(RECIPES / "cifar10-resnet20-sketch.toml")
    with pytest.raises(RecipeError, match="start from the bundle that was quantised"):
        starting_from(integers, recipe)
    with pytest.raises(BundleError, match="already"):
        quantize(integers, tmp_path / "again", classifier, samples, samples)
    with pytest.raises(BundleError, match="already"):
        quantize_file(integers.file(OBFUSCATOR_ONNX), tmp_path / "again.onnx", samples)


def test_a_bundle_without_weights_or_recipe(tmp_path):
    obfuscator, classifier = tiny.save_bundles(tmp_path, threshold=0.9)
    made = quantize(obfuscator, tmp_path / "int8", classifier, small_images(20), small_images(30, seed=1))
    assert set(made.files) == {OBFUSCATOR_ONNX} and made.gate == obfuscator.gate
    assert made.figures.accuracy_device == made.figures.quantized["accuracy_device_before"], "it is no convolution"
    assert made.recipe.name == "obfuscator-int8"
    target = load_target(str(made.path), size=(tiny.SIZE, tiny.SIZE))
    assert target.module is None and target.gate is not None


@pytest.mark.parametrize(
    ("kind", "fault", "said"),
    [
        ("identity", None, "has no convolution"),
        ("mix", "size", "images of"),
        ("mix", "none", "got 0 images"),
        ("mix", "classifier", "was trained for classifier"),
        ("mix", "damaged", "cannot be quantised|cannot be read"),
    ],
)
def test_what_cannot_be_quantised_leaves_nothing(tmp_path, kind, fault, said, samples, classifier):
    obfuscator, served = tiny.save_bundles(tmp_path / "pair", kind)
    calibration, test = small_images(4), small_images(4)
    if fault == "size":
        calibration = samples
    elif fault == "none":
        calibration = calibration.subset(0)
    elif fault == "classifier":
        served = classifier
    elif fault == "damaged":
        obfuscator.file(OBFUSCATOR_ONNX).write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match=said):
        quantize(obfuscator, tmp_path / "int8", served, calibration, test)
    assert [child.name for child in tmp_path.iterdir()] == ["pair"]


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    obfuscator, classifier = tiny.save_bundles(tmp_path / "pair")
    images = small_images(8)
    made = quantize(obfuscator, tmp_path / "int8", classifier, images, images)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(int8, "_compared", interrupted)
        quantize(obfuscator, made.path, classifier, images, images, overwrite=True)
    assert Bundle.load(made.path) == made
    assert sorted(child.name for child in tmp_path.iterdir()) == ["int8", "int8-lab", "pair"]


def test_only_what_was_quantised_before_is_replaced(tmp_path):
    obfuscator, classifier = tiny.save_bundles(tmp_path / "pair")
    images, folder = small_images(8), tmp_path / "int8"
    folder.mkdir()
    quantize(obfuscator, folder, classifier, images, images)  # an empty one is as good as none
    with pytest.raises(BundleError, match="exists already"):
        quantize(obfuscator, folder, classifier, images, images)
    again = quantize(obfuscator, folder, classifier, images.subset(4), images, overwrite=True)
    assert again.recipe.quantized["calibrated_on"] == 4
    for precious in (obfuscator.path, tmp_path):
        with pytest.raises(BundleError, match="holds something else"):
            quantize(obfuscator, precious, classifier, images, images, overwrite=True)
    assert Bundle.load(obfuscator.path) == obfuscator


def test_calibration_is_seen_and_nothing_else(tmp_path):
    """The scale of the input is the largest value among the calibration images, over 255 steps."""
    obfuscator, _ = tiny.save_bundles(tmp_path)
    dark = small_images(6)
    dark = replace(dark, images=dark.images // 4)
    for signed in (True, False):
        quantize_file(obfuscator.file(OBFUSCATOR_ONNX), tmp_path / "out.onnx", dark, signed_weights=signed)
        graph = onnx.load(str(tmp_path / "out.onnx")).graph
        values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
        scale = next(values[n.input[1]] for n in graph.node if n.op_type == "QuantizeLinear")
        assert float(scale) == pytest.approx(float(dark.images.max()) / 255 / 255, rel=1e-3)
        weights = [v for v in values.values() if v.ndim == 4]
        assert [v.dtype for v in weights] == [np.dtype(np.int8 if signed else np.uint8)]
        assert not signed or np.abs(weights[0].astype(int)).max() <= 64


def test_a_file_is_no_other_than_itself(tmp_path):
    obfuscator, classifier = tiny.save_bundles(tmp_path, threshold=0.9)
    file, served = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX)), OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    images = small_images(600)
    found = differences(file, file, served, images)
    assert found.predictions_changed == found.device_predictions_changed == found.payload_mean_difference == 0


def said_of(bundle: Bundle, figures: dict[str, float], **compared: float) -> str:
    changed = {**figures, "quantized": {**(bundle.figures.quantized or {}), **compared}}
    return "; ".join(remarks(replace(bundle, figures=bundle.figures.updated(**changed))))


def test_regressions_are_reported(integers):
    well = {"accuracy_obfuscated": 0.9, "accuracy_gated": 0.9, "offload_rate": 0.15}
    before = {"accuracy_obfuscated_before": 0.9, "accuracy_gated_before": 0.9, "offload_rate_before": 0.15}
    assert said_of(integers, well, time_of_float32=0.6, **before) == ""
    assert "1.20 times as long" in said_of(integers, well, **{**before, "time_of_float32": 1.2})
    said = said_of(integers, {**well, "accuracy_obfuscated": 0.87}, time_of_float32=0.6, **before)
    assert said == "the cloud's accuracy fell by 3.0 points"
    said = said_of(integers, {**well, "offload_rate": 0.3}, time_of_float32=0.6, **before)
    assert "now sends 30.0 % of the images instead of 15.0 %" in said
