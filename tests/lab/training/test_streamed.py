"""Training on a stream: an interruption changes nothing, and every kind that can be streamed ends in a bundle."""

import json
from dataclasses import asdict

import pytest
import torch

from interrupting import interrupted_at
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import load_images, stream
from sfumato.lab.runs.estimate import estimate
from sfumato.lab.training import run, train
from sfumato.lab.training.recipe import parse_recipe
from synthetic import save_folder

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 6)
    monkeypatch.setattr(stream, "SAMPLE", 12)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("streamed"), train=40, test=16)


def recipe(folder, kind="classifier", *, batch_size=8, train_images=40, **more):
    what = {"architecture": "resnet20"} if kind == "classifier" else {"classifier": more.pop("classifier", "x")}
    data = {"source": str(folder), "stream": True, "size": [32, 32], "test_images": 8, "zoom": 0.5}
    training = {"epochs": 2, "batch_size": batch_size, "schedule": "constant", "validate_every": 2}
    data["train_images"] = train_images
    return parse_recipe({"kind": kind, "name": "tiny", **what, **more, "data": data, "training": training})


@pytest.mark.long
def test_an_interrupted_run_resumes_to_the_same_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_finish", lambda made, *_: made.task)
    plan = recipe(folder)
    whole = train(plan, tmp_path / "whole", accelerator="cpu").state_dict()
    with interrupted_at(7):  # the second of the second epoch
        train(plan, tmp_path / "halves", accelerator="cpu")
    resumed = train(plan, tmp_path / "halves", accelerator="cpu", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.long
def test_a_streamed_classifier_and_a_streamed_sketch_become_bundles(folder, tmp_path):
    classifier = train(recipe(folder), tmp_path / "c", accelerator="cpu")
    assert classifier.provenance.others["streamed"] is True and classifier.provenance.train_images == 40
    assert classifier.figures.test_images == 8
    seen = load_images(str(folder), "train").images.numpy() / 255
    assert classifier.preprocessing.mean == pytest.approx(seen.mean(axis=(0, 2, 3)), abs=0.15)
    sketch = train(
        recipe(folder, "sketch", classifier=str(classifier.path), code_bits=4, held_out_images=6),
        tmp_path / "s",
        accelerator="cpu",
    )
    assert sketch.gate is not None and sketch.gate.images == 6
    assert sketch.figures.test_images == 8


def test_what_needs_all_images_at_once_is_refused(folder, tmp_path):
    for more in ({"privacy": {"target": "class-mean"}}, {"utility": {"teacher_weight": 1.0}}):
        with pytest.raises(RecipeError, match="need all of them at once"):
            train(recipe(folder, "obfuscator", **more), tmp_path / "o", accelerator="cpu")


def test_an_estimate_is_of_the_whole_recipe_and_says_that_it_is_extrapolated(folder):
    plan = recipe(folder, batch_size=2, train_images=4000)
    found = estimate(plan, accelerator="cpu", steps=4)
    assert "extrapolation" in found.what and found.steps_timed == 4
    whole = found.extrapolated
    assert (whole.epochs, whole.steps_per_epoch) == (2, 2000)
    assert whole.training_hours == pytest.approx(4000 * found.step_s / 3600, abs=0.01)
    assert found.images_per_s == pytest.approx(2 / found.step_s, rel=0.01)
    assert 0 <= found.data_share <= 1 and found.peak_memory_mb["process"] > 50
    assert json.loads(json.dumps(asdict(found)))["measured"]["streamed"] is True


def test_too_few_steps_to_time_are_refused(folder):
    with pytest.raises(TrainingError, match="too few to time"):
        estimate(recipe(folder, batch_size=20), accelerator="cpu")
