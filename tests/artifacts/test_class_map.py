"""Class maps, against sums of probabilities."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from json_schema import faults, schema
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap, are_probabilities, checked_groups, class_logits
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.errors import BundleError

PETS = {"cat": 3, "dog": [0, 5], "bird": [1]}


def probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.longdouble) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def summed(logits: np.ndarray, groups) -> np.ndarray:
    """What a class map means: the groups' probabilities, renormalised over all of them."""
    p = probabilities(logits)
    merged = np.stack([p[:, list(group)].sum(axis=1) for group in groups], axis=1)
    return merged / merged.sum(axis=1, keepdims=True)


def test_a_class_has_the_sum_of_its_outputs_probabilities_renormalised_over_the_map():
    logits = np.array([[1.0, 2.0, 9.0, 0.5, 7.0, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    merged = ClassMap.of(PETS, 6).logits(logits)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(probabilities(merged)[1], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(probabilities(merged), summed(logits, [[3], [0, 5], [1]]), rtol=1e-6)
    assert merged[0, 0] == logits[0, 3] and merged[0, 2] == logits[0, 1], "one output: bit for bit"


@given(st.integers(2, 40), st.randoms(use_true_random=False), st.sampled_from(["float16", "float32", "float64"]))
def test_any_map_of_any_logits(outputs, random, dtype):
    order = random.sample(range(outputs), random.randint(2, outputs))
    cuts = sorted(random.sample(range(1, len(order)), random.randint(1, len(order) - 1)))
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    logits = np.array([[random.uniform(-300, 300) for _ in range(outputs)] for _ in range(3)], dtype)
    merged = ClassMap.of({f"class {place}": group for place, group in enumerate(groups)}, outputs).logits(logits)
    assert merged.dtype == np.result_type(dtype, np.float32) and np.isfinite(merged).all()
    # Differences of logits of up to 300 keep 5 digits in float32.
    np.testing.assert_allclose(probabilities(merged), summed(logits.astype(np.float64), groups), rtol=1e-4, atol=1e-12)


def test_without_a_map_the_outputs_are_the_classes():
    logits = np.ones((2, 3), np.float32)
    assert class_logits(logits, None) is logits
    with pytest.raises(BundleError, match="for 6 outputs"):
        class_logits(logits, ClassMap.of(PETS, 6))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({}, "two classes at least, got 0"),
        ({"cat": 3}, "two classes at least, got 1"),
        ({"cat": 3, "dog": []}, "'dog' has no index"),
        ({"cat": 3, "dog": [5, 5]}, "output 5 is named twice: by 'dog' and by 'dog'"),
        ({"cat": 3, "dog": [5, 3]}, "output 3 is named twice: by 'cat' and by 'dog'"),
        ({"cat": 3, "dog": -1}, "'dog' has -1 for an index"),
        ({"cat": 3, "dog": 1.0}, r"'dog' has 1\.0 for an index"),
        ({"cat": 3, "dog": True}, "'dog' has True for an index"),
        ({"cat": 3, "dog": "5"}, "'dog' has '5' for an index"),
        ({"cat": 3, "dog": None}, "'dog' has None for an index"),
        ({"cat": 3, "dog": [[5]]}, r"'dog' has \[5\] for an index"),
        ({"cat": 3, "dog": {"a": 5}}, "for an index"),
        ({"cat": 3, " ": 5}, "is called ' '"),
        ({"gas pump": 3, "Gas_pump": 5}, "'gas pump' and 'Gas_pump' are one name"),
        ({"cat": 3, "dog": [0, 6]}, r"'dog' takes the output 6, but the classifier has 6: 0 to 5"),
        ({"cat": 3, "dog": 10**30}, "takes the output 1000"),
        ({"c" * 1000: 3, "d" * 1000: 3}, "named twice"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(classes, said):
    with pytest.raises(BundleError, match=said) as caught:
        ClassMap.of(classes, 6)
    assert len(str(caught.value)) < 400


def test_the_order_of_the_classes_is_the_files():
    assert checked_groups(PETS) == ((3,), (0, 5), (1,))
    assert ClassMap.of(PETS, 6) == ClassMap(6, ((3,), (0, 5), (1,)))
    assert ClassMap.of(PETS, 6).digest != ClassMap.of(dict(reversed(PETS.items())), 6).digest


def test_probabilities_are_told_from_logits():
    rows = np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]], np.float32)
    assert are_probabilities(rows) and not are_probabilities(rows * 2) and not are_probabilities(rows - 0.1)
    assert not are_probabilities(np.array([[0.2, 0.8], [0.0, 0.0]], np.float32)), "every row is looked at"


@pytest.fixture
def mapped(tmp_path) -> Bundle:
    """The tiny classifier, of whose four outputs a task needs three in two classes."""
    _, classifier = tiny.save_bundles(tmp_path)
    class_map = ClassMap.of({"pet": [0, 1], "truck": 3}, 4)
    return replace(classifier, labels=("pet", "truck"), class_map=class_map).save()


def test_a_bundle_keeps_its_map_and_its_fingerprint(mapped):
    loaded = Bundle.load(mapped.path)
    assert loaded == mapped and loaded.outputs == 4 and loaded.class_map.groups == ((0, 1), (3,))
    assert loaded.classifier_fingerprint != loaded.classifier_identity
    manifest = json.loads((mapped.path / "bundle.json").read_text())
    assert manifest["class_map"] == {"outputs": 4, "groups": [[0, 1], [3]]}
    assert faults(manifest, schema("bundle")) == []
    plain = replace(mapped, labels=tiny.LABELS, class_map=None)
    assert plain.outputs == 4 and plain.classifier_identity == plain.classifier_fingerprint
    assert "class_map" not in plain.to_json(), "as before"


def test_a_classifier_as_a_function_gives_its_classes(mapped):
    inputs = np.random.default_rng(0).normal(size=(5, 3, tiny.SIZE, tiny.SIZE)).astype(np.float32)
    wanted = summed(tiny.logits(inputs), [[0, 1], [3]])
    np.testing.assert_allclose(probabilities(ClassifierFunction(mapped)(inputs)), wanted, rtol=1e-4)


def test_an_obfuscator_is_for_one_map_of_one_classifier(mapped):
    other = replace(mapped, class_map=ClassMap.of({"pet": [1, 0], "truck": 3}, 4))
    mapped.check_classifier(mapped)
    with pytest.raises(BundleError, match="another class map"):
        other.check_classifier(mapped)
    with pytest.raises(BundleError, match="another class map"):
        replace(mapped, class_map=None).check_classifier(mapped)
    with pytest.raises(BundleError, match="was trained for classifier sha256:"):
        replace(mapped, classifier_fingerprint="sha256:0").check_classifier(mapped)


@pytest.mark.parametrize(
    "class_map",
    [
        {}, [], "x", 1, {"outputs": 4}, {"groups": [[0], [1]]},
        {"outputs": 4, "groups": [[0]]}, {"outputs": 4, "groups": [[0], [1], [2]]},
        {"outputs": 4, "groups": [[0], []]}, {"outputs": 4, "groups": [[0], [4]]},
        {"outputs": 4, "groups": [[0], [0]]}, {"outputs": 4, "groups": {"pet": [0], "truck": [1]}},
        {"outputs": 1, "groups": [[0], [1]]}, {"outputs": True, "groups": [[0], [1]]},
        {"outputs": 4.0, "groups": [[0], [1]]}, {"outputs": 10**9, "groups": [[0], [1]]},
        {"outputs": "4", "groups": [[0], [1]]}, {"outputs": 4, "groups": [[0], ["1"]]},
    ],
)  # fmt: skip
def test_a_damaged_map_in_a_bundle_is_refused(mapped, class_map):
    manifest = json.loads((mapped.path / "bundle.json").read_text())
    (mapped.path / "bundle.json").write_text(json.dumps({**manifest, "class_map": class_map}))
    with pytest.raises(BundleError, match="class"):
        Bundle.load(mapped.path)


def test_labels_that_a_map_cannot_name_are_refused(mapped):
    manifest = json.loads((mapped.path / "bundle.json").read_text())
    for labels in (["pet", "pet"], ["pet", 3], ["pet"], ["pet", "Pet"]):
        (mapped.path / "bundle.json").write_text(json.dumps({**manifest, "labels": labels}))
        with pytest.raises(BundleError):
            Bundle.load(mapped.path)
