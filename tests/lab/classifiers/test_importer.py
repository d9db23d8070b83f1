"""Imported classifiers of every kind, against the library that they come from."""

import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import brought
import tiny
from full_disk import disk_with_room_for
from sfumato.artifacts.bundle import CLASSIFIER_PROGRAM, Bundle
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.records import RecipeRecord
from sfumato.artifacts.shipped import classifier_bundle as shipped_classifier
from sfumato.device.image import prepare
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers import (
    Metadata,
    classifier_bundle,
    import_classifier,
    importer,
    load_classifier,
    trains_through,
)
from sfumato.lab.classifiers.hub import _framing
from sfumato.lab.export.onnx import export_onnx

IMAGENET = Metadata(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TOLERANCE = 2e-5
"""Relative to the largest logit: float32 in another order of operations."""


def served(bundle: Bundle, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(bundle.file("model.onnx")))
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def agree(got: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(got - wanted).max() <= TOLERANCE * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        pytest.param("vit", 64, marks=pytest.mark.long),
        ("resnet", 32),
        pytest.param("convnext", 224, marks=pytest.mark.long),
    ],
)
def test_a_transformers_folder_predicts_as_transformers_itself(tmp_path, kind, size):
    """The oracle is transformers' own processor and model on a PNG file."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = brought.save_transformers(tmp_path / kind, kind, size=size)
    bundle = import_classifier(str(folder), tmp_path / "bundle")
    image = tmp_path / "image.png"
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    # The ResNet's processor shows the inner 87.5 %, which a note says and this comparison leaves out.
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        Image.open(image), return_tensors="pt", do_resize=kind != "resnet", do_center_crop=False
    )
    with torch.no_grad():
        wanted = AutoModelForImageClassification.from_pretrained(folder).eval()(**theirs).logits.numpy()
    ours = bundle.preprocessing.normalize(prepare(pixels, bundle.preprocessing))[None]
    assert np.allclose(ours, theirs["pixel_values"].numpy(), atol=1e-5)
    assert agree(served(bundle, ours), wanted)
    frozen = load_classifier(bundle.path)
    assert agree(frozen.net(torch.from_numpy(ours)).numpy(), wanted)
    assert frozen.labels == brought.LABELS and frozen.name == kind
    notes = " ".join(bundle.recipe.notes)
    assert ("stretches" in notes, "inner 87.5%" in notes) == (kind == "vit", kind == "resnet")


@pytest.mark.long
def test_a_thousand_classes_and_another_scale(tmp_path):
    """A processor that leaves values in 0 to 255 gives a mean and a deviation on our scale."""
    import json

    labels = tuple(f"class {index}" for index in range(1000))
    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32, labels=labels)
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3}))
    bundle = import_classifier(str(folder), tmp_path / "bundle", Metadata(name="mine"))
    assert bundle.labels == labels and bundle.name == "mine"
    assert bundle.preprocessing.mean == pytest.approx((0.5,) * 3) and bundle.preprocessing.std == pytest.approx(
        (0.2,) * 3
    )


@pytest.mark.parametrize("suffix", ["pt2", "module"])
def test_a_program_and_a_module_predict_as_the_network_itself(tmp_path, suffix):
    net = brought.small()
    size = (24, 40)
    source = str(brought.save_program(tmp_path / "net.pt2", net, size=size)) if suffix == "pt2" else "brought:small"
    bundle = import_classifier(source, tmp_path / "bundle", Metadata(size=size, mean=IMAGENET.mean, std=IMAGENET.std))
    inputs = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    wanted = net(inputs).detach().numpy()
    assert agree(served(bundle, inputs.numpy()), wanted)
    assert agree(load_classifier(bundle.path).net(inputs).numpy(), wanted)
    assert bundle.labels == ("0", "1", "2", "3") and "called by their number" in bundle.recipe.notes[-1]
    assert (bundle.preprocessing.height, bundle.preprocessing.width) == size


def test_an_onnx_file_is_served_byte_for_byte_but_trains_nothing(tmp_path):
    file = tmp_path / "net.onnx"
    export_onnx(brought.small(), file, torch.rand(2, 3, 32, 32), input_name="x", output_name="y")
    bundle = import_classifier(str(file), tmp_path / "bundle", IMAGENET)
    assert bundle.classifier_fingerprint == fingerprint(file)
    assert (tmp_path / "bundle" / "model.onnx").read_bytes() == file.read_bytes()
    assert not trains_through(bundle)
    with pytest.raises(BundleError, match="no gradient passes"):
        load_classifier(bundle.path)


def in_two_files(folder):
    """`net.onnx` with its weights in `net.onnx.data`, as torch's exporter writes them by default."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    one = folder / "one.onnx"
    export_onnx(brought.small(), one, torch.rand(2, 3, 32, 32), input_name="x", output_name="y")
    two = folder / "net.onnx"
    onnx.save(onnx.load(one), two, save_as_external_data=True, location="net.onnx.data", size_threshold=100)
    return one, two


def test_an_onnx_file_with_its_weights_in_a_second_one_becomes_one_file(tmp_path):
    _, two = in_two_files(tmp_path / "source")
    bundle = import_classifier(str(two), tmp_path / "bundle", IMAGENET)
    assert sorted(file.name for file in bundle.path.iterdir()) == ["bundle.json", "model.onnx"]
    assert "Its weights were in a second file" in " ".join(bundle.recipe.notes)
    assert bundle.classifier_fingerprint == fingerprint(bundle.file("model.onnx")) != fingerprint(two)
    shutil.rmtree(two.parent)
    inputs = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    logits = served(Bundle.load(bundle.path), inputs)
    assert agree(logits, brought.small()(torch.from_numpy(inputs)).detach().numpy())


def test_swapped_weights_in_a_second_file_are_imported_again(tmp_path):
    _, two = in_two_files(tmp_path / "source")
    all_said = replace(IMAGENET, size=(32, 32))
    first = import_classifier(str(two), tmp_path / "bundle", all_said)
    again = importer._content(str(two))
    data = two.with_name("net.onnx.data")
    (-np.fromfile(data, "<f4")).tofile(data)
    assert importer._content(str(two)) != again
    second = import_classifier(str(two), tmp_path / "bundle", all_said)
    assert second.classifier_fingerprint != first.classifier_fingerprint


@pytest.mark.parametrize("harm", ["missing", "cut", "outside"])
def test_an_onnx_file_without_its_weights_is_refused(tmp_path, harm):
    _, two = in_two_files(tmp_path / "source")
    data = two.with_name("net.onnx.data")
    if harm == "missing":
        data.unlink()
    elif harm == "cut":
        data.write_bytes(data.read_bytes()[:10])
    else:
        two.write_bytes(two.read_bytes().replace(b"net.onnx.data", b"../onnx.data1"))
    said = {
        "missing": "copy that file, too",
        "cut": "out of bounds|file_length|cannot",
        "outside": "outside its folder",
    }
    with pytest.raises(ClassifierError, match=said[harm]):
        import_classifier(str(two), tmp_path / "bundle", IMAGENET)
    assert not (tmp_path / "bundle").exists()


def test_a_full_disk_leaves_the_bundle_of_before(tmp_path):
    one, two = in_two_files(tmp_path / "source")
    before = import_classifier(str(one), tmp_path / "bundle", IMAGENET)
    for source, room in ((one, 100), (two, 100), (one, one.stat().st_size // 2)):
        with disk_with_room_for(room), pytest.raises((ClassifierError, BundleError), match="cannot be written"):
            import_classifier(str(source), tmp_path / "bundle", IMAGENET)
        assert Bundle.load(before.path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bundle", "source"]


@pytest.mark.parametrize(("resample", "noted"), [(0, True), (2, False), (3, True), (None, False)])
def test_another_resampling_than_bilinear_is_noted(resample, noted):
    """0 is Pillow's number of the nearest pixel."""
    size, notes = _framing({"resample": resample, "size": {"height": 32, "width": 32}}, object())
    assert size == (32, 32) and ("does not resample bilinearly" in " ".join(notes)) == noted


def test_gradients_of_an_imported_classifier_are_those_of_the_network(tmp_path):
    net = brought.small()
    bundle = import_classifier(
        "brought:small", tmp_path / "bundle", Metadata(size=(32, 32), mean=IMAGENET.mean, std=IMAGENET.std)
    )
    frozen = load_classifier(bundle.path).net.to(memory_format=torch.channels_last).train()
    gradients = []
    for each in (net, frozen):
        inputs = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).requires_grad_()
        gradients.append(torch.autograd.grad(each(inputs).square().sum(), inputs)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6) and gradients[0].abs().sum() > 0
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.long
def test_a_recipe_may_name_anything_that_says_all_of_itself(tmp_path):
    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32)
    made = classifier_bundle(str(folder), tmp_path / "classifier")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("apple", "apricot"))
    classifier_bundle(str(folder), tmp_path / "classifier")
    assert Bundle.load(made).labels[0] == "apricot", "what was changed is imported again"
    before = fingerprint(made / "model.onnx")
    shutil.rmtree(folder)
    assert classifier_bundle(str(folder), tmp_path / "classifier") == made, "what was made is used again"
    assert fingerprint(made / "model.onnx") == before
    assert classifier_bundle(str(made), tmp_path / "other") == made
    assert classifier_bundle("cifar10-resnet20", tmp_path / "other") == shipped_classifier()
    with pytest.raises(ClassifierError, match="give --mean, --std"):
        classifier_bundle(str(brought.save_program(tmp_path / "n.pt2", brought.small())), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_a_bundle_of_an_earlier_version_is_used_again(tmp_path):
    source = str(brought.save_transformers(tmp_path / "vit", "vit", size=32))
    made = Bundle.load(classifier_bundle(source, tmp_path / "classifier"))
    former = {"source": "given", "source_sha256": "given_sha256"}
    recipe = {former.get(key, key): value for key, value in made.recipe.to_json().items()} | {"kind": "adopted"}
    replace(made, recipe=RecipeRecord.from_json(recipe), files={}).save()
    classifier_bundle(source, made.path)
    assert Bundle.load(made.path).recipe.to_json() == recipe
    (tmp_path / "vit" / "config.json").write_text((tmp_path / "vit" / "config.json").read_text() + " ")
    classifier_bundle(source, made.path)
    assert Bundle.load(made.path).recipe.kind == "imported", "it may be replaced"


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.pth", "net.pkl"])
def test_pickles_are_refused_before_they_are_opened(tmp_path, name):
    with pytest.raises(ClassifierError, match=r"can run code when it is loaded.*package\.module:callable"):
        import_classifier(str(tmp_path / name), tmp_path / "bundle")


def test_a_folder_with_pickled_weights_alone_is_refused(tmp_path):
    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ClassifierError, match=r"no \.safetensors file.*save_pretrained"):
        import_classifier(str(folder), tmp_path / "bundle")


def test_a_model_without_its_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32)
    file = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if not name.startswith("classifier")}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ClassifierError, match=r"lacks the weights classifier\.bias"):
        import_classifier(str(folder), tmp_path / "bundle")


def test_what_cannot_be_expressed_is_refused(tmp_path):
    import json

    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32)
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text())
    file.write_text(
        json.dumps({**said, "image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True})
    )
    with pytest.raises(ClassifierError, match="BGR"):
        import_classifier(str(folder), tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_channels": 2}))
    with pytest.raises(ClassifierError, match="2 channels"):
        import_classifier(str(folder), tmp_path / "bundle")


def test_a_transformers_model_says_whether_it_is_multi_label(tmp_path):
    import json

    folder = brought.save_transformers(tmp_path / "vit", "vit", size=32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    assert import_classifier(str(folder), tmp_path / "bundle").multi_label
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    with pytest.raises(ClassifierError, match="'regression'; classes are expected"):
        import_classifier(str(folder), tmp_path / "bundle")


class Softmax(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(brought.small(), torch.nn.Softmax(dim=1))


class Deaf(torch.nn.Module):
    def forward(self, x):
        return (x.detach().mean(dim=(2, 3)) > 0).float()


class Several(torch.nn.Module):
    def forward(self, x):
        return {"logits": x.mean(dim=(2, 3))}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Softmax", "gives probabilities"),
        ("Deaf", "passes no gradients"),
        ("Several", "gives a dict"),
        ("TOLERANCE", "is a float"),
        ("agree", "failed without arguments"),
        ("nothing", "cannot be imported"),
    ],
)
def test_a_module_that_is_no_classifier_is_refused(tmp_path, monkeypatch, source, said):
    monkeypatch.setitem(__import__("sys").modules, "their_module", __import__("sys").modules[__name__])
    whole = Metadata(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ClassifierError, match=said):
        import_classifier(f"their_module:{source}", tmp_path / "bundle", whole)
    assert not (tmp_path / "bundle").exists()


def test_onnx_files_that_cannot_be_used_are_refused(tmp_path):
    fixed = tiny.save_classifier(tmp_path / "fixed.onnx", batch=1)
    with pytest.raises(ClassifierError, match="takes 1 images at a time"):
        import_classifier(str(fixed), tmp_path / "bundle", IMAGENET)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ClassifierError, match="cannot be run"):
        import_classifier(str(tmp_path / "broken.onnx"), tmp_path / "bundle", IMAGENET)
    node = tiny.helper.make_node("Identity", ["x"], ["y"])
    last = tiny.save_model(
        tmp_path / "last.onnx", [node], {}, [tiny.floats("x", "n", 8, 8, 3)], [tiny.floats("y", "n", 8, 8, 3)]
    )
    with pytest.raises(ClassifierError, match="channels come last"):
        import_classifier(str(last), tmp_path / "bundle", IMAGENET)


def test_labels_must_be_as_many_as_classes_and_other_folders_are_left_alone(tmp_path):
    file = tiny.save_classifier(tmp_path / "net.onnx")
    with pytest.raises(ClassifierError, match="has 4 classes, but 2 labels"):
        import_classifier(
            str(file), tmp_path / "bundle", Metadata(mean=(0, 0, 0), std=(1, 1, 1), labels=("cat", "dog"))
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ClassifierError, match="holds something else"):
        import_classifier(str(file), tmp_path / "mine", IMAGENET)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not (tmp_path / "bundle" / CLASSIFIER_PROGRAM).exists()


@pytest.mark.parametrize("source", ["nothing-here", "./a/b/c", "~/no/such"])
def test_a_source_of_no_known_kind_is_refused_with_a_list_of_kinds(tmp_path, source):
    with pytest.raises(ClassifierError, match="expected a bundle's or a transformers folder"):
        import_classifier(source, tmp_path / "bundle")
