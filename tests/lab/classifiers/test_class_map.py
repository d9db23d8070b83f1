"""Class maps from their files to imported classifiers and frozen networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import brought
import tiny
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers import Metadata, import_classifier, load_classifier, read_class_map
from sfumato.lab.classifiers.frozen import Mapped
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.export.onnx import export_onnx
from synthetic import image_set

SIZE = Metadata(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
CLASSES = {"fruit": [1, 3], "nut": 0}
TOML = 'fruit = [1, 3]\n"nut" = 0\n'


def test_a_map_is_read_from_toml_and_json(tmp_path):
    (tmp_path / "map.toml").write_text(TOML)
    (tmp_path / "map.json").write_text('{"fruit": [1, 3], "nut": 0}')
    for name in ("map.toml", "map.json"):
        assert list(read_class_map(tmp_path / name).items()) == list(CLASSES.items())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.toml", None, "cannot be read: No such file"),
        ("absent.json", None, "cannot be read"),
        ("map.txt", b"fruit = 1", r"a \.toml or \.json file is expected"),
        ("map", b"fruit = 1", r"a \.toml or \.json file is expected"),
        ("map.toml", b"fruit: 1", "cannot be read as TOML"),
        ("map.toml", b"garbage truck = 569\nnut = 0", "a name with spaces needs quotes"),
        ("map.toml", b"fruit = 1\nfruit = 2", "stands there once"),
        ("map.toml", b"\xff\xfe", "cannot be read as TOML"),
        ("map.toml", b"a = " + b"[" * 100_000, "cannot be read as TOML"),
        ("map.toml", b"", "two classes at least"),
        ("map.toml", b"[classes]\nfruit = 1\nnut = 0", "two classes at least"),
        ("map.toml", b"fruit = [1, 3]\nnut = 3", r"map\.toml: the output 3 is named twice"),
        ("map.toml", b"fruit = []\nnut = 3", "'fruit' has no index"),
        ("map.toml", b"fruit = 1\nFRUIT = 3", "are one name"),
        ("map.json", b"[1, 3]", "holds a list"),
        ("map.json", b'{"fruit": 1, "fruit": 2}', "the key 'fruit' stands twice"),
        ("map.json", b"{", "cannot be read as JSON"),
        ("map.json", b'{"fruit": "1", "nut": 0}', "'fruit' has '1' for an index"),
    ],
)
def test_a_file_that_is_no_map_says_what_is_wrong(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClassifierError, match=said):
        read_class_map(tmp_path / name)


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("mapped") / "bundle"
    return import_classifier("brought:small", folder, replace(SIZE, class_map=CLASSES))


def served(bundle: Bundle, inputs: torch.Tensor) -> torch.Tensor:
    """All outputs of the file that a server serves."""
    session = onnxruntime.InferenceSession(str(bundle.file("model.onnx")))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def test_the_imported_classifier_is_the_same_with_and_without_a_map(imported, tmp_path):
    plain = import_classifier("brought:small", tmp_path / "plain", SIZE)
    assert imported.classifier_fingerprint == plain.classifier_fingerprint
    assert imported.classifier_identity != plain.classifier_identity
    assert imported.labels == ("fruit", "nut") and imported.class_map == ClassMap(4, ((1, 3), (0,)))
    assert Bundle.load(imported.path) == imported


def test_served_file_and_frozen_network_give_the_same_classes(imported):
    """The oracle is torch's own log-sum-exp of the outputs of the served file."""
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = served(imported, inputs)
    assert outputs.shape == (5, 4)
    wanted = torch.stack([outputs[:, [1, 3]].logsumexp(dim=1), outputs[:, 0]], dim=1)
    frozen = load_classifier(imported.path)
    torch.testing.assert_close(frozen.net(inputs), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.from_numpy(ClassifierFunction(imported)(inputs.numpy())), wanted)
    assert (frozen.labels, frozen.class_map, frozen.identity) == (
        imported.labels, imported.class_map, imported.classifier_identity
    )  # fmt: skip
    obfuscator = frozen.obfuscator(imported.path, imported.recipe)
    assert obfuscator.class_map == imported.class_map and obfuscator.labels == imported.labels


@pytest.mark.parametrize("groups", [((2, 0), (4,), (1, 5)), ((2,), (4,), (1,)), ((0, 1, 2, 3, 4), (5,))])
def test_values_and_gradients_are_those_of_torchs_log_sum_exp(groups):
    class_map = ClassMap(6, groups)
    outputs = (40 * torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    mine, oracle = (
        Mapped(nn.Identity(), class_map)(outputs),
        torch.stack([outputs[:, list(group)].logsumexp(dim=1) for group in groups], dim=1),
    )
    torch.testing.assert_close(mine, oracle)
    weights = torch.randn(mine.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((weights * one).sum(), outputs)[0] for one in (mine, oracle)]
    torch.testing.assert_close(*gradients)
    np.testing.assert_allclose(class_map.logits(outputs.detach().numpy()), oracle.detach().numpy())
    half = Mapped(nn.Identity(), class_map)(outputs.detach().bfloat16())
    assert half.dtype == torch.float32, "sums of bfloat16 would lose what they add"


def test_what_the_outputs_are_called_is_said(tmp_path):
    described = replace(SIZE, labels=brought.LABELS, class_map=CLASSES)
    bundle = import_classifier("brought:small", tmp_path / "bundle", described)
    assert "Its class map: fruit = banana + date; nut = apple." in bundle.recipe.notes


@pytest.mark.parametrize(
    ("class_map", "said"),
    [
        ({"fruit": [1, 4], "nut": 0}, "'fruit' takes the output 4, but the classifier has 4: 0 to 3"),
        ({"fruit": [], "nut": 0}, "'fruit' has no index"),
        ({"fruit": 1}, "two classes at least"),
    ],
)
def test_a_map_that_does_not_fit_the_classifier_leaves_nothing_behind(tmp_path, class_map, said):
    with pytest.raises(ClassifierError, match=said):
        import_classifier("brought:small", tmp_path / "bundle", replace(SIZE, class_map=class_map))
    assert not (tmp_path / "bundle").exists()


def test_an_onnx_file_of_probabilities_cannot_be_summed_but_picked_from(tmp_path):
    file = tmp_path / "net.onnx"
    net = nn.Sequential(brought.small(), nn.Softmax(dim=1))
    export_onnx(net, file, torch.rand(2, 3, 32, 32), input_name="x", output_name="y")
    with pytest.raises(ClassifierError, match=r"gives probabilities.*one index for each class"):
        import_classifier(str(file), tmp_path / "bundle", replace(SIZE, class_map=CLASSES))
    bundle = import_classifier(str(file), tmp_path / "bundle", replace(SIZE, class_map={"fruit": 1, "nut": 0}))
    assert "lower confidence" in bundle.recipe.notes[-1]
    assert (bundle.path / "model.onnx").read_bytes() == file.read_bytes()


def test_accuracy_is_over_the_tasks_classes(imported):
    images = replace(image_set(20, seed=3), names=("nut", "fruit"), labels=torch.arange(20) % 2)
    inputs = imported.preprocessing.normalize(images.images.numpy().astype(np.float32) / 255)
    shares = served(imported, torch.from_numpy(inputs)).softmax(dim=1)
    fruit = shares[:, 1] + shares[:, 3] > shares[:, 0]
    expected = float((fruit == (images.labels == 1)).double().mean())
    assert evaluate_classifier(imported, images).accuracy_plain == expected


def test_an_obfuscator_for_another_map_is_not_evaluated(tmp_path):
    pair = [
        replace(bundle, labels=("pet", "truck"), class_map=ClassMap.of({"pet": pets, "truck": 3}, 4))
        for bundle, pets in zip(tiny.save_bundles(tmp_path), ([0, 1], [0, 2]), strict=True)
    ]
    images = replace(image_set(4, size=(tiny.SIZE, tiny.SIZE)), names=("pet", "truck"), labels=torch.arange(4) % 2)
    with pytest.raises(BundleError, match="another class map"):
        evaluate_obfuscator(*pair, images)


def test_the_example_of_imagenette_names_its_ten_classes():
    root = Path(__file__).parents[3]
    classes = read_class_map(root / "examples" / "imagenette" / "classes.toml")
    assert list(classes.values()) == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
