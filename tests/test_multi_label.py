"""A multi-label classifier from its import to a client's prediction, as a person does it; and what refuses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attributes
import sfumato
import tiny
from commands import sfumato as command
from sfumato.apps.demo import run_demo
from sfumato.apps.doctor import examine, is_well
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import ServedModel, running
from sfumato.device import Client, FileClient
from sfumato.errors import BundleError, ClassifierError, RecipeError, TrainingError
from sfumato.lab.classifiers import import_classifier, load_classifier
from sfumato.lab.training import train
from sfumato.lab.training.blackbox import Oracle
from sfumato.lab.training.recipe import load_recipe, parse_recipe
from sfumato.lab.training.recipe_parts import BlackBoxRecipe

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in `data`, the imported classifier in `net`, and what `init` and `train` made of them in `mine`."""
    folder = tmp_path_factory.mktemp("way")
    attributes.save(folder / "data")
    (folder / "labels.txt").write_text("\n".join(attributes.CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(folder / "cache"))
        described = ["--size", "16x16", "--mean", "0.5", "--std", "0.25", "--labels", "labels.txt", "--name", "bright"]
        said = command("import", "attributes:Bright", "-o", "net", *described, "--multi-label", cwd=folder).stdout
        assert "3 classes, any number of them in an image" in said and "--kind obfuscator" in said
        wanted = ["--classifier", "net", "--data", "data/labels.csv", "-o", "mine", "--kind", "obfuscator"]
        assert "mean average precision 100.0%" in command("init", *wanted, cwd=folder).stdout
        few = ["--set", "training.epochs=3", "--set", "privacy_weight=0.0", "--set", "training.learning_rate=1e-2"]
        said = command("train", "mine/recipe.toml", "-o", "mine/run", *few, cwd=folder).stdout
        assert "mean_average_precision_obfuscated: " in said
        assert "sfumato audit mine/run/bundle --data data/labels.csv" in said, "without --classifier"
    return folder


def test_the_bundles_say_it_and_those_of_before_are_single_label(way: Path, tmp_path: Path) -> None:
    classifier, obfuscator = Bundle.load(way / "net"), Bundle.load(way / "mine" / "run" / "bundle")
    assert classifier.multi_label and obfuscator.multi_label
    assert load_recipe(way / "mine" / "recipe.toml").data.label_columns == attributes.CLASSES
    assert json.loads((way / "net" / "bundle.json").read_text())["labelling"] == "multi-label"
    single, _ = tiny.save_bundles(tmp_path)
    assert "labelling" not in json.loads((single.path / "bundle.json").read_text())
    assert Bundle.load(single.path).labelling == "single-label"
    with pytest.raises(BundleError, match="is multi-label, but"):
        obfuscator.check_classifier(replace(classifier, labelling="single-label"))


def test_it_is_evaluated_by_precision_and_not_by_accuracy(way: Path) -> None:
    said = json.loads(command("evaluate", "net", "--data", "data/labels.csv", "--json", cwd=way).stdout)
    assert said["figures"] == {"test_images": 8, "mean_average_precision_plain": 1.0, "f1_plain": 1.0}
    pair = ["mine/run/bundle", "--classifier", "net", "--data", "data/labels.csv"]
    said = json.loads(command("evaluate", *pair, "--json", cwd=way).stdout)
    stored = Bundle.load(way / "mine" / "run" / "bundle").figures.to_json()
    assert said["figures"] == pytest.approx(stored), "the same as after training"
    assert [one["label"] for one in said["by_class"]["classes"]] == list(attributes.CLASSES)
    printed = command("evaluate", *pair, cwd=way).stdout
    assert "AP, payloads" in printed and "verdict: mean average precision on payloads" in printed
    assert "accuracy" not in printed


def test_a_client_tells_which_classes_are_present(way: Path) -> None:
    """The oracle is the classifier's rule, applied to the payload by hand."""
    bundle, images = Bundle.load(way / "mine" / "run" / "bundle"), attributes.pixels(8, seed=3)
    with running([ServedModel(way / "net")]) as url:
        with Client(url, bundle) as client:
            payloads = np.stack([one.tensor for one in client.obfuscator.obfuscate_batch(images)])
            assert client.metadata().parameters["labelling"] == "multi-label"
            found = client.classify_batch(images)
            checked = examine(Client(url, bundle, gate=False), classifier=Bundle.load(way / "net"))
        asked: Any = {"bundle": bundle, "url": url}
        zeros_and_ones, probabilities = sfumato.predict(images, **asked), sfumato.predict_proba(images, **asked)
        printed = command("classify", "data", "--bundle", bundle.path, "--server", url, "--json", cwd=way).stdout
    wanted = 1 / (1 + np.exp(-4 * payloads.mean(axis=(2, 3), dtype=np.float64)))
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    np.testing.assert_allclose([one.probabilities for one in found], wanted, atol=1e-5)
    assert zeros_and_ones.dtype == np.int64 and (zeros_and_ones == (wanted >= 0.5)).all()
    for one, row in zip(found, zeros_and_ones, strict=True):
        assert one.present == tuple(np.array(attributes.CLASSES)[row == 1])
        assert one.label == attributes.CLASSES[int(np.argmax(one.probabilities))]
    assert is_well(checked), checked
    assert {"present", "top"} <= json.loads(printed)["predictions"][0].keys()


def test_on_the_device_alone_it_predicts_any_number_of_classes(way: Path) -> None:
    images = attributes.pixels(8, seed=4)
    found = sfumato.predict(images, bundle=way / "net", url=None)
    assert found.tolist() == attributes.present(8).tolist()
    said = command("classify", "data/00.png", "data/03.png", "--bundle", "net", cwd=way).stdout
    lines = said.splitlines()
    (first,) = (line for line in lines if "00.png" in line)
    assert "none" in first and "red" not in first
    assert sum("red" in line for line in lines) == sum("green" in line for line in lines[2:]) == 1, said


def test_training_without_labels_learns_from_the_classifiers_own_predictions(way: Path, tmp_path: Path) -> None:
    taught = {"teacher_weight": 1.0}
    data = {"source": str(way / "data" / "labels.csv"), "size": [16, 16]}
    bundle = train(recipe(way, data=data, utility=taught), tmp_path, accelerator="cpu")
    assert bundle.figures.mean_average_precision_plain == 1, "the truth is what it predicts"
    assert {"hamming_loss", "distillation"} <= bundle.provenance.to_json()["history"][0].keys()


def recipe(way: Path, kind: str = "obfuscator", **more: Any) -> Any:
    data = {"source": str(way / "data" / "labels.csv"), "size": [16, 16], "label_columns": ["red", "blue", "green"]}
    training = {"epochs": 1, "batch_size": 8}
    return parse_recipe(
        {"kind": kind, "name": "x", "classifier": str(way / "net"), "data": data, "training": training, **more}
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"kind": "sketch"}, "a sketch's code names one class"),
        ({"privacy": {"target": "class-mean"}}, "class-mean"),
        ({"bottleneck": {"entropy_weight": 0.1}}, "entropy_weight"),
        ({"data": {"label_columns": ["red", "red"]}}, "twice"),
        ({"data": {"label_columns": ["red", "blue"], "label_column": "age"}}, "one of them alone"),
        (
            {"data": {"source": "x", "label_columns": ["a", "b"], "stream": True, "size": [16, 16], "test_images": 1}},
            "leave stream out",
        ),
    ],
)
def test_recipes_that_need_one_class_are_refused_when_they_are_read(way: Path, more: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(way, **{"kind": "obfuscator", **more})


def test_a_recipe_without_the_columns_is_refused_too(way: Path, tmp_path: Path) -> None:
    data = {"source": str(way / "data" / "labels.csv"), "size": [16, 16], "label_column": "age"}
    with pytest.raises(RecipeError, match=r"data\.label_columns \(red, green, blue"):
        train(recipe(way, data=data), tmp_path / "one", accelerator="cpu")
    with pytest.raises(RecipeError, match='kind = "sketch" needs one class'):
        train(recipe(way, "sketch", data=data, held_out_images=2), tmp_path / "two", accelerator="cpu")
    single = {**vars(attributes.METADATA), "labelling": None}
    import_classifier("attributes:Bright", tmp_path / "single", type(attributes.METADATA)(**single))
    with pytest.raises(RecipeError, match="one class per image"):
        train(recipe(way, classifier=str(tmp_path / "single")), tmp_path / "three", accelerator="cpu")


def test_what_is_no_multi_label_classifier_is_not_imported_as_one(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="leave its sigmoid out"):
        import_classifier("attributes:Sure", tmp_path / "net", attributes.METADATA)
    merged = replace(attributes.METADATA, class_map={"warm": [0, 1], "cold": 2})
    with pytest.raises(ClassifierError, match="one index for each class"):
        import_classifier("attributes:Bright", tmp_path / "net", merged)
    some = replace(attributes.METADATA, class_map={"cold": 2, "warm": 0})
    bundle = import_classifier("attributes:Bright", tmp_path / "net", some)
    found = sfumato.predict(attributes.pixels(8), bundle=bundle, url=None)
    assert found.tolist() == attributes.present(8)[:, [2, 0]].tolist()


def test_commands_that_need_one_class_refuse_it_and_say_what_works(way: Path) -> None:
    bundle, of = "mine/run/bundle", ["--classifier", "net"]
    for words in (
        ["audit", bundle, *of, "--data", "data/labels.csv"],
        ["audit", bundle, "--membership", *of, "--data", "data/labels.csv"],
        ["advise", "net", "--data", "data/labels.csv"],
        ["baseline", "pixelate", *of, "--data", "data/labels.csv"],
        ["evaluate", bundle, *of, "--data", "data/labels.csv", "--transfer"],
        ["studio", "-o", bundle, *of],
        ["evaluate", "net", "--data", "data/labels.csv", "--calibrate"],
        ["export", bundle, "--to", "int8", "-o", "int8", *of],
        ["export", bundle, "--to", "hub", "-o", "public"],
    ):
        said = command(*words, code=1, cwd=way).stderr
        assert "multi-label" in said and "What can: import" in said, words
    said = command("init", *of, "--data", "data/labels.csv", "-o", "other", code=1, cwd=way).stdout
    assert "choose --kind obfuscator" in said
    assert "no column 'red'" in command("evaluate", "net", "--data", "other.csv", code=1, cwd=other_data(way)).stderr


def other_data(way: Path) -> Path:
    (way / "other.csv").write_text("file,green,blue\ndata/00.png,0,0\ndata/01.png,1,0\n")
    return way


def test_the_library_refuses_it_where_it_needs_one_class(way: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is multi-label; this needs one class"):
        load_classifier(way / "net")
    with pytest.raises(BundleError, match="client for image files"):
        FileClient("http://127.0.0.1:1", way / "mine" / "run" / "bundle")
    with pytest.raises(BundleError, match="demonstration"):
        run_demo([], tmp_path, classifier=way / "net")
    with running([ServedModel(way / "net")]) as url, pytest.raises(TrainingError, match="is multi-label"):
        size = Bundle.load(way / "net").preprocessing
        Oracle(url, BlackBoxRecipe(model="bright"), preprocessing=size, classes=3, memory=tmp_path / "answers")


@pytest.mark.parametrize("change", [{"labelling": "several"}, {"labelling": 2}, {"gate": True}, {"class_map": True}])
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    bundle, _ = tiny.save_bundles(tmp_path, threshold=0.5 if "gate" in change else None)
    manifest = bundle.to_json() | {"labelling": "multi-label"}
    if "class_map" in change:
        manifest |= {"class_map": {"outputs": 5, "groups": [[0, 4], [1], [2], [3]]}}
    manifest |= {key: value for key, value in change.items() if key == "labelling"}
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"labelling is|has a gate or|merges several outputs"):
        Bundle.load(bundle.path)
