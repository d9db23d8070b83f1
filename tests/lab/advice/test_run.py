"""Advice from a classifier and images to the page: resumed, made again with more time, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from typer.testing import CliRunner

from fakes import fake_audit
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import ClassifierError, DataError, Interrupted, RecipeError, ResultsError, TrainingError
from sfumato.lab.advice import measure, nets, run
from sfumato.lab.advice.run import advise
from sfumato.lab.advice.schema import Advice
from sfumato.lab.runs import speed
from sfumato.lab.runs.trainings import State
from sfumato.lab.training import load_recipe
from sfumato.progress import mute, silent
from synthetic import CLASSES, pixels, png, save_folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch, own_caches):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # else the command starts the process again
    monkeypatch.setattr(speed, "_image_seconds", lambda *_, **__: 1e-4)
    monkeypatch.setattr(measure, "THUMBNAIL_BYTES", (200, 1000))
    for module in (nets, run):
        monkeypatch.setattr(module, "WHOLE", 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("advice") / "photos", train=40, test=16)


@pytest.fixture
def lesson(trained, photos, tmp_path) -> nets.Lesson:
    place = trained[0].path, str(photos), tmp_path
    return run._lesson(*place, allow_outside=False, progress=silent, say=mute)[0]


def save_tables(folder: Path, label: int | None = None) -> str:
    """Images as parquet files, all of one label or without labels."""
    for split, count in (("train", 40), ("test", 16)):
        images = [{"bytes": png(image), "path": None} for image in pixels(count, seed=len(split))]
        columns, features = {"image": images}, {"image": Image()}
        if label is not None:
            columns, features = columns | {"label": [label] * count}, features | {"label": ClassLabel(names=CLASSES)}
        Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_the_command_from_a_classifier_to_a_page_and_again(trained, photos, tmp_path, monkeypatch):
    arguments = ["advise", str(trained[0].path), "--data", str(photos), "--budget", "nano", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "least bytes" in done.stdout and "an epoch of device-nano takes about" in done.stderr
    page = (tmp_path / "out" / "advice.html").read_text()
    assert "no recognisable image leaves" in page and "device-nano 2 of 2 epochs" in page and "--accent" in page
    first = Advice.read(tmp_path / "out" / "advice.json")
    assert first.measured.options == ("--budget", "nano") and first.measured.missing == ()
    assert {part.name for part in first.parts} == {"images", "device-nano", "sketch"}
    assert {way.kind for way in first.measured.ways} == {
        *("plain", "thumbnail", "blur", "pixelate", "local", "gate", "sketch")
    }

    monkeypatch.setattr(nets, "finish_training", lambda *_, **__: pytest.fail("it was finished already"))
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert again.exit_code == 0 and not again.stderr, again.output
    assert [way["accuracy"] for way in json.loads(again.stdout)["measured"]["ways"]] == [
        way.accuracy for way in first.measured.ways
    ]

    sketch = Bundle.load(next(part.bundle for part in first.parts if part.name == "sketch"))
    found = fake_audit(
        target={"fingerprint": sketch.files[OBFUSCATOR_ONNX]}, data={"source": str(photos)}, utility=None, mse=0.02
    )
    (tmp_path / "out" / "audits" / "sketch").mkdir(parents=True)
    found.write(tmp_path / "out" / "audits" / "sketch" / "audit.json")
    weaker = fake_audit(target={"fingerprint": sketch.files[OBFUSCATOR_ONNX]}, data={"source": str(photos)})
    (tmp_path / "out" / "audits" / "weaker").mkdir()
    weaker.write(tmp_path / "out" / "audits" / "weaker" / "audit.json")  # read later, and it hides nothing
    audited = advise(str(trained[0].path), str(photos), tmp_path / "out", budget="nano")
    (way,) = [way for way in audited.measured.ways if way.name == "sketch"]
    assert way.audit.excess_leakage == pytest.approx(found.best.excess_leakage)
    with pytest.raises(ResultsError, match="another classifier or other images"):
        advise(str(trained[0].path), str(save_folder(tmp_path / "others", train=20, test=12)), tmp_path / "out")


def test_what_was_interrupted_resumes_and_a_short_training_is_made_again(
    lesson, trained, photos, tmp_path, monkeypatch
):
    trained_for, state = [], State("half done")
    monkeypatch.setattr(nets, "state_of", lambda run: state)

    def training(recipe, run, **_):
        trained_for.append(run.folder.name)
        run.folder.mkdir(parents=True, exist_ok=True)
        run.checkpoint.write_bytes(b"")
        raise Interrupted("saved")

    monkeypatch.setattr(nets, "finish_training", training)
    with pytest.raises(Interrupted):
        advise(str(trained[0].path), str(photos), tmp_path, budget="nano")
    assert (tmp_path / "advice.html").exists() and trained_for == ["device-nano-2"]
    interrupted = nets.Planned(nets.Run(tmp_path / "nets/device-nano-2"), nets.Schedule(2), False)
    assert nets.plan(lesson, "device-nano", nets.Schedule(1)) == interrupted

    monkeypatch.setattr(nets, "WHOLE", 100)
    state = State("done")
    assert nets.plan(lesson, "device-nano", nets.Schedule(3)).done, "not twice as long"
    for longer, name in ((nets.Schedule(4), "device-nano-4"), (nets.Schedule(9, views=3), "device-nano-9-views-3")):
        assert nets.plan(lesson, "device-nano", longer) == nets.Planned(
            nets.Run(tmp_path / "nets" / name), longer, False
        )
    assert nets.plan(lesson, "device-paper", nets.Schedule(0)) is None
    (tmp_path / "nets" / "device-nano-9-views-3").mkdir()
    assert nets.plan(lesson, "device-nano", nets.Schedule(9, views=5)).schedule == nets.Schedule(9, views=3)
    assert nets.plan(lesson, "device-nano", nets.Schedule(9, views=6)).schedule == nets.Schedule(9, views=6)
    assert nets.plan(lesson, "device-nano", nets.Schedule(9)).schedule == nets.Schedule(9), "nine views, one an epoch"


@pytest.mark.parametrize(
    ("seconds", "student_s", "teacher_s", "most", "found"),
    [
        *((seconds, 5, 5, 99, (epochs, 0)) for seconds, epochs in ((5, 0), (60, 5), (1e9, 100))),  # 85 % of each
        (200, 1, 17, 99, (85, 5)),  # half of 170 s each
        (200, 1, 17, 2, (100, 2)),
        (200, 1, 17, 0, (9, 0)),
        (400, 1, 17, 99, (100, 14)),  # what a whole schedule leaves
        (40, 1, 20, 99, (14, 1)),  # one view in any case
        (20, 1, 20, 99, (0, 0)),
        (25, 1, 20, 99, (1, 0)),
        (2500, 1, 20, 3, (100, 0)),  # time for 100 views is time for new ones in each epoch
        (2400, 1, 20, 3, (100, 3)),
    ],
)
def test_the_time_is_divided_among_the_net_and_its_teacher(monkeypatch, seconds, student_s, teacher_s, most, found):
    monkeypatch.setattr(nets, "WHOLE", 100)
    epoch = nets.Epoch(student_s, teacher_s)
    schedule = nets.schedule_within(seconds, epoch, most)
    assert schedule == nets.Schedule(*found)
    assert epoch.training_s(schedule.epochs, schedule.views) <= 0.85 * seconds
    assert epoch.times(3).training_s(4, 2) == 3 * (4 * student_s + 2 * teacher_s)


def test_with_little_time_a_costly_classifier_teaches_on_few_views(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "teacher_seconds", lambda *_: 25.0)  # 1,000 s an epoch, against 4 ms
    for module in (nets, run):
        monkeypatch.setattr(module, "WHOLE", 3)
    said = []
    found = advise(str(trained[0].path), str(photos), tmp_path, budget="nano", say=said.append)
    nano, sketch = found.parts[1:]
    assert (nano.name, nano.epochs, nano.views, nano.finished) == ("device-nano", 3, 1, 3)
    assert (sketch.epochs, sketch.views) == (3, 0), "the net took far less time than was estimated"
    assert all(way.at_least for way in found.measured.ways if way.kind == "local"), "more views might teach more"
    assert (tmp_path / "nets/device-nano-3-views-1/teacher-views/view-000.safetensors").is_file()
    assert any(line.startswith("device-nano: 3 of 3 epochs on 1 view of each image, about") for line in said)
    assert "on 1 view of each image" in (tmp_path / "advice.html").read_text()


def test_a_training_whose_time_is_up_is_a_lower_bound(lesson):
    planned = nets.plan(lesson, "device-nano", nets.Schedule(2))
    part = nets.make(lesson, "device-nano", planned, 0.0, "", silent, mute)
    assert part.finished == 0 and Bundle.load(part.bundle).kind == "classifier"


def test_a_training_that_resumed_took_what_all_its_calls_took(lesson, monkeypatch):
    made = SimpleNamespace(provenance=SimpleNamespace(epochs=5, training_seconds=100.0))
    monkeypatch.setattr(nets, "finish_training", lambda *_, **__: None)
    monkeypatch.setattr(nets, "Bundle", SimpleNamespace(load=lambda _: made))
    part = nets.make(
        lesson, "device-nano", nets.Planned(nets.Run(lesson.folder), nets.Schedule(5), False), 9.0, "", silent, mute
    )
    assert (part.seconds, part.finished) == (100.0, 5), "else the next net is planned for far too many epochs"


def test_images_without_labels_give_agreement(trained, tmp_path):
    source = save_tables(tmp_path / "photos")
    found = advise(str(trained[0].path), source, tmp_path / "out", budget="nano")
    assert found.measured.measure == "agreement"
    assert {way.name: way.accuracy for way in found.measured.ways}["plain image"] == 1.0
    assert {"device-nano", "sketch"} <= {way.name for way in found.measured.ways}


def test_bad_input_is_refused_before_anything_is_trained(trained, photos, tmp_path, monkeypatch):
    classifier = str(trained[0].path)
    monkeypatch.setattr(nets, "finish_training", lambda *_, **__: pytest.fail("nothing is to be trained"))
    for more, error, says in (
        ({"minutes": 0.001}, TrainingError, "too short.* give at least --minutes 0.1"),
        ({"budget": "1e5"}, RecipeError, "the smallest, device-nano, takes 2,4"),
        ({"budget": "tiny"}, RecipeError, "'tiny' is unknown; give one of nano, paper, large"),
    ):
        with pytest.raises(error, match=says):
            advise(classifier, str(photos), tmp_path / "out", **more)
    with pytest.raises(DataError, match="of one class"):
        advise(classifier, save_tables(tmp_path / "one", label=0), tmp_path / "two")
    monkeypatch.setattr(run, "classify", lambda served, test, **_: torch.nn.functional.one_hot((test.labels + 1) % 4))
    with pytest.raises(ClassifierError, match="no better than the most frequent class alone"):
        advise(classifier, str(photos), tmp_path / "three")


def test_a_budget_in_operations_takes_what_fits(lesson):
    assert lesson.nets("2.5e6") == ["device-nano"] and lesson.nets("6e7") == lesson.nets("large")


def test_the_schedule_is_that_of_the_recipes(lesson):
    for name in ("device-nano", "device-paper", "device-large"):
        made = replace(lesson, images=50_000).recipe(name, 100)
        known = load_recipe(
            Path(f"recipes/cifar10-{name}.toml"), ["training.int8_epochs=0", "training.validate_every=100"]
        )
        assert made.training == known.training
        assert made.data.augmentation == known.data.augmentation
