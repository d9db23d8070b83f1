"""Training that begins with an obfuscator made for another classifier."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.artifacts.bundle import CLASSIFIER_WEIGHTS, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.files import file_sha256
from sfumato.artifacts.lab_files import lab_file, save_lab
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.training import train
from sfumato.lab.training.recipe import parse_recipe
from synthetic import save_folder


def recipe(kind: str, folder: Path, **changes: Any) -> Any:
    training = {"epochs": 2, "batch_size": 4, "schedule": "constant", **changes.pop("training", {})}
    sketch = {"held_out_images": 4, "code_bits": 3, "min_images_per_code": 2} if kind == "sketch" else {}
    given = {"kind": kind, "name": kind, "data": {"source": str(folder)}, "training": training, **sketch, **changes}
    return parse_recipe(given)


pytestmark = pytest.mark.long  # each test trains


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, own_caches: Path, image_folder: Path) -> Bundle:
    """The next version of the classifier."""
    plan = recipe("classifier", image_folder, architecture="vgg7", training={"seed": 5})
    return train(plan, tmp_path_factory.mktemp("next"), accelerator="cpu")


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory, trained: Any, image_folder: Path) -> Bundle:
    plan = recipe("sketch", image_folder, classifier=str(trained[0].path))
    return train(plan, tmp_path_factory.mktemp("sketch"), accelerator="cpu")


def weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    return load_file(lab_file(bundle, OBFUSCATOR_WEIGHTS))


def test_a_sketch_keeps_how_it_looks_and_learns_what_it_draws(
    sketch: Bundle, other: Bundle, image_folder: Path, tmp_path: Path
) -> None:
    plan = recipe("sketch", image_folder, classifier=str(other.path))
    adapted = train(plan, tmp_path / "run", accelerator="cpu", start=sketch)
    assert adapted.classifier_fingerprint == other.classifier_fingerprint
    assert adapted.figures.accuracy_device == sketch.figures.accuracy_device
    before, after = weights(sketch), weights(adapted)
    for name, value in before.items():
        looks = name.startswith(("trunk.", "to_bits.", "kept_"))
        if looks or name.endswith("num_batches_tracked"):
            assert torch.equal(value, after[name]) == looks, name
    assert not torch.equal(before["draw.1.weight"], after["draw.1.weight"])
    assert adapted.recipe.to_json()["learn"] == "decoder"
    assert [net["name"] for net in adapted.provenance.trained_for] == ["classifier"]
    assert adapted.provenance.others["started_from"]["sha256"] == file_sha256(lab_file(sketch, OBFUSCATOR_WEIGHTS))
    assert adapted.code_fingerprint == sketch.code_fingerprint is not None


def test_all_of_it_can_be_learned_on(sketch: Bundle, other: Bundle, image_folder: Path, tmp_path: Path) -> None:
    plan = recipe("sketch", image_folder, classifier=str(other.path), learn="all")
    adapted = train(plan, tmp_path / "run", accelerator="cpu", start=sketch)
    assert not torch.equal(weights(sketch)["trunk.head.weight"], weights(adapted)["trunk.head.weight"])
    assert adapted.code_fingerprint != sketch.code_fingerprint


def test_an_obfuscator_begins_where_the_other_ended(
    trained: Any, other: Bundle, image_folder: Path, tmp_path: Path
) -> None:
    still = recipe(
        "obfuscator", image_folder, classifier=str(other.path), training={"epochs": 1, "learning_rate": 1e-12}
    )
    adapted = train(still, tmp_path / "run", accelerator="cpu", start=trained[1])
    before, after = weights(trained[1]), weights(adapted)
    for name, value in before.items():
        if name.endswith("weight"):
            assert torch.allclose(value, after[name], atol=1e-6), name


def test_what_does_not_fit_is_refused(sketch: Bundle, trained: Any, other: Bundle, image_folder: Path, tmp_path: Path):
    for_other = {"classifier": str(other.path)}
    with pytest.raises(RecipeError, match="'sketch'"):
        train(recipe("obfuscator", image_folder, **for_other), tmp_path / "a", accelerator="cpu", start=sketch)
    with pytest.raises(RecipeError, match="code_bits"):
        plan = recipe("sketch", image_folder, **for_other).model_copy(update={"code_bits": 5})
        train(plan, tmp_path / "b", accelerator="cpu", start=sketch)
    with pytest.raises(RecipeError, match="classes"):
        strange = replace(sketch, labels=("w", "x", "y", "z"))
        train(recipe("sketch", image_folder, **for_other), tmp_path / "c", accelerator="cpu", start=strange)
    with pytest.raises(RecipeError, match="--from"):
        train(recipe("sketch", image_folder, learn="decoder", **for_other), tmp_path / "d", accelerator="cpu")
    vgg7, resnet20 = (recipe("classifier", image_folder, architecture=net) for net in ("vgg7", "resnet20"))
    for start, plan in ((sketch, vgg7), (other, resnet20)):
        with pytest.raises(RecipeError, match='goes on from a classifier with architecture = "'):
            train(plan, tmp_path / "e", accelerator="cpu", start=start)
    with pytest.raises(RecipeError, match="other classes"):
        train(vgg7, tmp_path / "f", accelerator="cpu", start=replace(other, labels=("w", "x", "y", "z")))


def test_a_classifiers_training_goes_on_from_a_classifier(other: Bundle, image_folder: Path, tmp_path: Path) -> None:
    hardly = {"seed": 5, "learning_rate": 1e-9, "epochs": 1, "weight_decay": 0.0}
    plan = recipe("classifier", image_folder, architecture="vgg7", training=hardly)
    again = train(plan, tmp_path / "run", accelerator="cpu", start=other)
    fresh = train(plan, tmp_path / "fresh", accelerator="cpu")
    before, after, instead = (load_file(bundle.file(CLASSIFIER_WEIGHTS)) for bundle in (other, again, fresh))
    trained = [name for name in before if name.endswith(".weight")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in trained)
    assert not all(torch.allclose(before[name], instead[name], atol=1e-6) for name in trained)
    assert again.provenance.others["started_from"]["training"]["epochs"] == 2


def test_a_run_goes_on_only_from_the_same_start(
    sketch: Bundle, other: Bundle, image_folder: Path, tmp_path: Path
) -> None:
    plan = recipe("sketch", image_folder, classifier=str(other.path))
    train(plan, tmp_path / "run", accelerator="cpu", start=sketch)
    again = train(plan, tmp_path / "run", accelerator="cpu", start=sketch, resume=True)
    assert again.figures.test_images == 8
    shutil.copytree(sketch.path.parent, tmp_path / "other")
    changed = Bundle.load(tmp_path / "other" / "bundle")
    save_file({**weights(sketch), "trunk.head.bias": torch.zeros(4)}, lab_file(changed, OBFUSCATOR_WEIGHTS))
    save_lab(changed)
    with pytest.raises(TrainingError, match="another recipe"):
        train(plan, tmp_path / "run", accelerator="cpu", start=changed, resume=True)


def test_further_classifiers_must_know_the_same_classes(
    trained: Any, other: Bundle, image_folder: Path, tmp_path: Path
) -> None:
    folder = save_folder(tmp_path / "three", names=("apple", "banana", "cherry", "elder"))
    stranger = train(recipe("classifier", folder, architecture="vgg7"), tmp_path / "stranger", accelerator="cpu")
    plan = recipe("sketch", image_folder, classifier=str(other.path), transfer={"ensemble": [str(trained[0].path)]})
    both = train(plan, tmp_path / "run", accelerator="cpu")
    assert [net["name"] for net in both.provenance.trained_for] == ["classifier", "small"]
    plan = recipe("sketch", image_folder, classifier=str(other.path), transfer={"ensemble": [str(stranger.path)]})
    with pytest.raises(RecipeError, match=r"transfer\.ensemble"):
        train(plan, tmp_path / "other", accelerator="cpu")
