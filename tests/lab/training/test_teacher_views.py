"""Fixed views with a teacher that counts its calls and whose logits are numbers of the image itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.errors import Interrupted, RecipeError, TrainingError
from sfumato.lab.data import Augmentation
from sfumato.lab.models import Normalize
from sfumato.lab.runs import estimate
from sfumato.lab.training import images, run, train
from sfumato.lab.training.engine import Fitted, Hooks, Options, fit
from sfumato.lab.training.recipe import parse_recipe
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.setup import starting_from
from sfumato.lab.training.tasks import ClassifierTask
from sfumato.lab.training.teacher_views import TeacherViews, most_views
from synthetic import image_set, save_folder

VIEWS, EPOCHS, STEPS = 2, 8, 3
TRAIN, TEST = image_set(14, size=(8, 8)), image_set(7, size=(8, 8), seed=1)
AUGMENTATION = Augmentation(flip=True, crop_padding=2, cutout=3)


class Counting(nn.Module):
    """Selects pixels as logits, so that they are the same in any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += [image.numpy().tobytes() for image in images.contiguous()]
        return 10 * images[:, :2, ::5, 2].flatten(1)


class Noting(ClassifierTask):
    """Notes what it gets in each training step, and may do something in one of them."""

    def __init__(self, seed: int = 0, at: int = 0, action=lambda: None) -> None:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
        super().__init__(net, Normalize((0.5,) * 3, (0.2,) * 3), teacher=Counting(), teacher_in_validation=False)
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.at, self.action = at, action

    def forward(self, images, labels, taught=None):
        if self.training:
            self.steps.append((images.clone(), labels, taught))
            if len(self.steps) == self.at:
                self.action()
        return super().forward(images, labels, taught)


def fitted(task: Noting, folder: Path, *, resume: bool = False, identity: str = "{}", until=lambda: False) -> Fitted:
    views = TeacherViews(
        task.taught,
        classes=4,
        images=len(TRAIN),
        views=VIEWS,
        augmentation=AUGMENTATION,
        folder=folder / "views",
        identity=identity,
    )
    return fit(
        Fabric(accelerator="cpu", devices=1),
        task,
        TrainingRecipe(epochs=EPOCHS, batch_size=4, seed=1, learning_rate=0.01),
        train=TRAIN,
        test=TEST,
        augmentation=AUGMENTATION,
        checkpoint=folder / "checkpoint.pt",
        identity=identity,
        options=Options(resume=resume),
        hooks=Hooks(until=until),
        views=views,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Noting:
    """After a training that nothing disturbed."""
    task = Noting()
    fitted(task, tmp_path_factory.mktemp("whole"))
    return task


def same(task: Noting, other: Noting) -> bool:
    return torch.equal(task.net[1].weight, other.net[1].weight)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_student_sees_the_teachers_views_and_logits(whole):
    assert len(whole.steps) == EPOCHS * STEPS
    for x, _, taught in whole.steps:
        assert taught.dtype == torch.float32
        assert torch.equal(taught, Counting()(x).half().float())


def test_the_teacher_is_computed_once_for_each_view(whole):
    calls = whole.teacher.seen
    assert len(calls) == len(set(calls)) == VIEWS * len(TRAIN), "in all of 8 epochs and their validations"
    assert {image.numpy().tobytes() for x, _, _ in whole.steps for image in x.contiguous()} == set(calls)
    in_first_epochs = {image.numpy().tobytes() for x, _, _ in whole.steps[: VIEWS * STEPS] for image in x.contiguous()}
    assert len(in_first_epochs) == VIEWS * STEPS * 4, "and nothing before it is needed"


def test_views_come_from_the_images_and_keep_their_labels(whole):
    pairs = [pair for x, labels, _ in whole.steps for pair in zip(x, labels, strict=True)]
    classes = {image.numpy().tobytes(): label for image, label in pairs}
    assert [list(classes.values()).count(label) for label in range(4)] == [VIEWS * count for count in (4, 4, 3, 3)]
    of_classes = [TRAIN.images[TRAIN.labels == one].float() / 255 for one in range(4)]
    means = torch.stack([one.mean(dim=(0, 2, 3)) for one in of_classes])
    for image, label in pairs:
        colour = torch.stack([channel.median() for channel in image])
        assert int((means - colour).square().sum(dim=1).argmin()) == label


@pytest.mark.parametrize("step", [1, 2, STEPS, STEPS + 2, VIEWS * STEPS + 1, EPOCHS * STEPS])
def test_an_interrupted_run_resumes_to_the_same_weights_and_computes_nothing_twice(whole, tmp_path, step):
    first, second = Noting(at=step, action=stop), Noting(seed=5)
    with pytest.raises(Interrupted):
        fitted(first, tmp_path)
    fitted(second, tmp_path, resume=True)
    assert same(second, whole)
    calls = first.teacher.seen + second.teacher.seen
    assert calls == whole.teacher.seen and len(calls) == VIEWS * len(TRAIN)


def test_a_crash_resumes_to_the_same_weights(whole, tmp_path):
    def crash() -> None:
        raise MemoryError

    first, second = Noting(at=STEPS + 2, action=crash), Noting(seed=5)
    with pytest.raises(MemoryError):
        fitted(first, tmp_path)
    fitted(second, tmp_path, resume=True)
    assert same(second, whole)
    assert first.teacher.seen[: STEPS * 4] + second.teacher.seen == whole.teacher.seen


def test_a_run_that_its_time_ends_computed_no_more_than_it_learned_from(tmp_path):
    task = Noting()
    found = fitted(task, tmp_path, until=lambda: len(task.steps) == 2)
    assert found.epochs == 0 and len(task.teacher.seen) == 8


@pytest.mark.parametrize("damage", ["changed", "cut", "another"])
def test_damaged_and_foreign_logits_are_computed_again(whole, tmp_path, caplog, damage):
    with pytest.raises(Interrupted):
        fitted(Noting(at=2, action=stop), tmp_path)
    file = tmp_path / "views" / "view-000.safetensors"
    stored = file.read_bytes()
    if damage == "another":
        (tmp_path / "checkpoint.pt").unlink()
    else:
        file.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]) if damage == "changed" else stored[:-9])
    task = Noting()
    fitted(task, tmp_path, resume=damage != "another", identity='{"recipe": 2}' if damage == "another" else "{}")
    assert same(task, whole)
    assert ("computed again" in caplog.text) == (damage != "another")


def test_a_file_holds_a_view_in_half_precision(tmp_path):
    task = Noting()
    with pytest.raises(Interrupted):
        fitted(Noting(at=2, action=stop), tmp_path)
    (logits,) = load_file(tmp_path / "views" / "view-000.safetensors").values()
    assert logits.shape == (14, 4) and logits.dtype == torch.float16
    assert int(logits.isnan().all(dim=1).sum()) == 14 - 8 and not task.teacher.seen
    assert not list((tmp_path / "views").glob("*.partial"))


def test_a_disk_that_refuses_is_reported(tmp_path):
    (tmp_path / "views").touch()
    with pytest.raises(TrainingError, match=r"logits cannot be written to .*views: .*make room, then --resume"):
        fitted(Noting(), tmp_path)


def test_logits_beyond_half_precision_stay_finite(tmp_path, monkeypatch):
    task = Noting()
    monkeypatch.setattr(task.teacher, "forward", lambda x: torch.full((len(x), 4), 1e6))
    fitted(task, tmp_path)
    assert all(torch.equal(taught, torch.full((4, 4), 65504.0)) for _, _, taught in task.steps)


def test_more_logits_than_a_gibibyte_are_refused():
    assert most_views(50_000, 10) == 1073 and most_views(1_281_167, 1000) == 0
    common = {"augmentation": AUGMENTATION, "folder": Path(), "identity": ""}
    with pytest.raises(RecipeError, match=r"teacher_views = 20: .*1\.9 GiB, more than 1; set it to at most 10"):
        TeacherViews(Counting(), images=500_000, classes=100, views=20, **common)
    with pytest.raises(RecipeError, match="leave it out"):
        TeacherViews(Counting(), images=10_000_000, classes=100, views=1, **common)


def plan(kind: str = "classifier", teacher: object = "x", **more: object):
    what = {"architecture": "resnet20", "teacher": teacher} if kind == "classifier" else {"classifier": str(teacher)}
    training = {"epochs": 3, "batch_size": 4, "schedule": "constant", **more.pop("training", {})}
    return parse_recipe({"kind": kind, "name": "v", "teacher_views": 2, "training": training, **what, **more})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"mixup": 0.2}, "teacher_views cannot be had with mixup"),
        ({"data": {"source": "x", "stream": True, "size": [8, 8], "test_images": 4}}, "with data.stream"),
        ({"training": {"small_epochs": 1}}, "with training.small_epochs"),
        ({"teacher": None}, "name it in teacher"),
    ],
)
def test_what_does_not_go_with_fixed_views_is_refused(more, says):
    with pytest.raises(RecipeError, match=says):
        plan(**more)


def test_a_decoder_alone_has_no_fixed_views():
    start: Any = SimpleNamespace(recipe=SimpleNamespace(quantized=None))
    with pytest.raises(RecipeError, match="a decoder alone"):
        starting_from(start, plan("sketch", code_bits=4))


@pytest.fixture
def in_memory(monkeypatch):
    sets = {"train": image_set(26), "test": image_set(4, seed=1)}
    monkeypatch.setattr(images, "load_images", lambda _source, split, **_: sets[split])
    monkeypatch.setattr(run, "_finish", lambda made, *_: made.task)


@pytest.mark.parametrize("kind", ["classifier", "sketch"])
def test_a_recipe_with_views_keeps_their_logits_in_the_runs_folder(trained, in_memory, tmp_path, kind):
    recipe = plan(
        kind, str(trained[0].path), **({} if kind == "classifier" else {"code_bits": 4, "held_out_images": 6})
    )
    task = train(recipe, tmp_path, accelerator="cpu")
    assert sorted(file.name for file in (tmp_path / "teacher-views").iterdir()) == [
        "view-000.safetensors",
        "view-001.safetensors",
    ]
    logits = load_file(tmp_path / "teacher-views" / "view-001.safetensors")["logits"]
    assert logits.shape == (26 - (6 if kind == "sketch" else 0), 4)
    assert not task.teacher_in_validation
    with pytest.raises(TrainingError, match="another recipe"):
        train(recipe.model_copy(update={"teacher_views": 1}), tmp_path, accelerator="cpu", resume=True)
    train(recipe.model_copy(update={"teacher_views": 0}), tmp_path, accelerator="cpu", overwrite=True)
    assert not (tmp_path / "teacher-views").exists()


@pytest.mark.parametrize("kind", ["classifier", "sketch"])
def test_an_estimate_counts_the_teacher_in_the_first_epochs_alone(trained, in_memory, monkeypatch, kind):
    monkeypatch.setattr(estimate, "_FEWEST", 2)
    monkeypatch.setattr(estimate, "_WARM_UP", 1)
    monkeypatch.setattr(estimate, "teacher_seconds", lambda *_: 3600.0)
    more = {} if kind == "classifier" else {"code_bits": 4, "held_out_images": 6}
    found = estimate.estimate(plan(kind, str(trained[0].path), **more), accelerator="cpu").extrapolated
    assert found.training_hours == pytest.approx(2 * (26 - more.get("held_out_images", 0)), abs=1)


@pytest.mark.long
def test_two_processes_share_what_they_compute(trained, tmp_path):
    folder = save_folder(tmp_path / "images", train=16, test=8)
    (tmp_path / "recipe.toml").write_text(
        f"""
        kind = "classifier"
        name = "shared"
        architecture = "device-nano"
        teacher = "{trained[0].path}"
        teacher_views = 1
        [data]
        source = "{folder}"
        [training]
        epochs = 2
        batch_size = 4
        """
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SFUMATO", "LOCAL_RANK"))}
    environment = {**kept, "SFUMATO_CACHE": str(tmp_path / "cache"), "MALLOC_TRIM_THRESHOLD_": "1"}
    found = []
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "sfumato", "train", "recipe.toml", "--accelerator", "cpu", "--json"]
        command += ["--devices", devices, "-o", devices]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=600)
        found += load_file(tmp_path / devices / "teacher-views" / "view-000.safetensors").values()
    assert not found[1].isnan().any(), "those of the other process, too"
    assert torch.allclose(found[0].float(), found[1].float(), atol=0.02)
