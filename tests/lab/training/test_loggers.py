"""Where a training logs: files on this machine, and tracking servers, which are faked; these get no image unasked."""

from __future__ import annotations

import csv
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from lightning.pytorch.loggers import wandb as lightning_wandb
from PIL import Image

from commands import sfumato
from interrupting import interrupted_at
from sfumato.errors import TrainingError
from sfumato.lab.data import Augmentation
from sfumato.lab.training import engine, loggers
from sfumato.lab.training.engine import Options
from sfumato.lab.training.loggers import ended, loggers_of
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.setup import launch
from synthetic import image_set


class Sent(list):
    """What a fake tracking server was sent: (kind, what)."""

    def of(self, kind: str) -> list[Any]:
        return [what for each, what in self if each == kind]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Fakes of MLflow and Weights & Biases with what Lightning's loggers call."""
    sent = Sent()

    class MlflowClient:
        def __init__(self, uri: str) -> None:
            sent.append(("uri", uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            return "1"

        def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id="run", experiment_id=experiment_id))

        def get_run(self, run_id: str) -> bool:
            return True

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            sent.extend(("figure", (metric.key, metric.value)) for metric in metrics)

        def log_image(self, run_id: str, image: Image.Image, artifact_file: str) -> None:
            sent.append(("image", image))

        def set_terminated(self, run_id: str, status: str) -> None:
            sent.append(("end", status))

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, figures: dict[str, Any]) -> None:
            for key, value in figures.items():
                sent.append(("image", value[0]) if isinstance(value, list) else ("figure", (key, value)))

        def finish(self) -> None:
            sent.append(("end", "finished"))

    module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None, MlflowClient=MlflowClient)
    module(monkeypatch, "mlflow.tracking", MlflowClient=MlflowClient)
    module(monkeypatch, "mlflow.entities", Metric=SimpleNamespace)
    module(monkeypatch, "mlflow.utils")
    module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="name")
    module(monkeypatch, "mlflow.tracking.context")
    module(monkeypatch, "mlflow.tracking.context.registry", resolve_tags=lambda tags: tags)
    module(monkeypatch, "wandb", init=lambda **how: Run(), run=None, Image=lambda image: image)
    module(monkeypatch, "wandb.sdk")
    module(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    module(monkeypatch, "wandb.wandb_run", Run=Run)
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(lightning_mlflow, "_get_resolve_tags", lambda: lambda tags: tags)
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sent


class Task(torch.nn.Module):
    """Fits one number, and shows the images in grey."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (images - self.level).square().mean()}

    def panel(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)[None]


def fitted(folder: Path, said: list[str] | None = None, *, resume: bool = False, **how: Any) -> None:
    folder.mkdir(exist_ok=True)
    plan = TrainingRecipe(epochs=2, batch_size=4, schedule="constant", learning_rate=0.01, validate_every=1)
    options = Options("cpu", resume=resume, say=[].append if said is None else said.append, **how)
    fabric, _ = launch(plan, folder, options)
    with ended(fabric.loggers):
        engine.fit(
            fabric,
            Task(),
            plan,
            train=image_set(8, size=(8, 8)),
            test=image_set(4, size=(8, 8), seed=1),
            augmentation=Augmentation(),
            checkpoint=folder / "checkpoint.pt",
            identity="x",
            options=options,
        )


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_files_have_the_figures_and_a_resumed_run_keeps_those_before(tmp_path: Path) -> None:
    with interrupted_at(3):
        fitted(tmp_path / "run", loggers=["csv", "csv"])
    fitted(tmp_path / "run", resume=True, loggers=["csv"])
    parts = [rows(tmp_path / "run" / "csv" / f"version_{part}" / "metrics.csv") for part in (0, 1)]
    assert [row["step"] for row in parts[0] if row["test/loss"]] == ["2"]
    assert [row["step"] for row in parts[1] if row["test/loss"]] == ["4"]
    assert all(float(row["train/loss"]) > 0 for part in parts for row in part if row["train/loss"])
    assert not (tmp_path / "run" / "tensorboard").exists(), "it is the default only"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
@pytest.mark.parametrize("allowed", [False, True])
def test_a_tracking_server_gets_figures_and_images_only_if_allowed(
    name: Any, allowed: bool, sent: Sent, tmp_path: Path
) -> None:
    said: list[str] = []
    fitted(tmp_path / "run", said, loggers=[name], log_images=allowed)
    names = {key for key, _ in sent.of("figure")}
    assert {"train/loss", "test/loss", "learning_rate"} <= names
    assert sent.of("end") == [{"mlflow": "FINISHED", "wandb": "finished"}[name]]
    assert not any("--logger" in line for line in said)
    if not allowed:
        assert sent.of("image") == []
        return
    first, _ = sent.of("image")
    grey = image_set(4, size=(8, 8), seed=1).images.float().mean(dim=1).numpy()
    np.testing.assert_allclose(np.asarray(first)[:, :8, 0], grey[0], atol=0.51)
    assert first.size == (32, 8)


def test_an_interrupted_run_is_killed_and_not_finished(sent: Sent, tmp_path: Path) -> None:
    with interrupted_at(3):
        fitted(tmp_path / "run", loggers=["mlflow"])
    assert sent.of("end") == ["KILLED"]
    assert sent.of("uri") == [f"file:{tmp_path / 'run' / 'mlruns'}"]


def test_a_tracking_server_that_fails_does_not_stop_the_training(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    said: list[str] = []
    fitted(tmp_path / "run", said, loggers=["wandb", "csv"], log_images=True)
    assert [line for line in said if "--logger" in line] == ["--logger wandb: no route; nothing more is logged there"]
    assert len(rows(tmp_path / "run" / "csv" / "version_0" / "metrics.csv")) >= 4


def test_what_cannot_be_logged_to_is_an_error_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(TrainingError, match=f"{name} is not installed; run: pip install {name}"):
            loggers_of([name], tmp_path, print)
    with pytest.raises(TrainingError, match="a logger is one of tensorboard, csv, mlflow, wandb; got 'neptune'"):
        loggers_of(["neptune"], tmp_path, print)
    monkeypatch.setattr(loggers, "_mlflow", lambda *_, **__: 1 / 0)
    with pytest.raises(TrainingError, match="--logger mlflow cannot be set up: division by zero"):
        loggers_of(["mlflow"], tmp_path, print)


def test_the_command_hands_the_loggers_on(tmp_path: Path) -> None:
    done = sfumato("train", "recipes/cifar10-resnet20.toml", "-o", tmp_path, "--logger", "neptune", code=1)
    assert "a logger is one of tensorboard, csv, mlflow, wandb" in done.stderr
