"""Where the figures of a training are logged: Lightning's loggers, and what may be told to each.

Files on this machine get everything. A tracking server (MLflow, Weights & Biases) gets figures, and images only if that
is allowed; if it fails, the training goes on without it.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor

from sfumato.errors import Interrupted, TrainingError
from sfumato.progress import Say

DEFAULT = ("tensorboard",)
_PROJECT = "sfumato"
_SHEET = "original, obfuscated, reconstructed"


class _TensorBoard(TensorBoardLogger):
    def log_sheet(self, sheet: Tensor, step: int) -> None:
        self.experiment.add_image(_SHEET, sheet, global_step=step)


class TrackingServer(Logger):
    """The logger of a tracking server, which may fail: that is said once, and nothing more is logged there.

    Args:
        name: as `--logger` has it.
        logger: Lightning's.
        send: sends a sheet of images, at a step; None if images are not to be sent.
        end: what has to be done at the end of a run that logged something.
        say: is told of a failure.
    """

    def __init__(
        self,
        name: str,
        logger: Logger,
        send: Callable[[Image.Image, int], None] | None,
        end: Callable[[], None],
        say: Say,
    ) -> None:
        self._name, self._logger, self._send, self._end, self._say = name, logger, send, end, say
        self._used, self._failed = False, False

    @property
    def name(self) -> str:
        """Return its name, not the experiment's, which only the server knows."""
        return self._name

    @property
    def version(self) -> None:
        """Return None: the server names the run."""
        return

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Log nothing: a recipe may name folders of this machine."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log figures."""
        self._try(lambda: self._logger.log_metrics(metrics, step))

    @rank_zero_only
    def log_sheet(self, sheet: Tensor, step: int) -> None:
        """Send images, (3, H, W) in [0, 1], if that is allowed."""
        if (send := self._send) is not None:
            pixels = (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            self._try(lambda: send(Image.fromarray(pixels), step))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, if it has begun."""
        if self._used:
            self._try(lambda: self._logger.finalize(status))
            self._try(self._end)

    def _try(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
            self._used = True
        except Exception as error:  # these libraries raise errors of many kinds
            self._failed = True
            self._say(f"--logger {self._name}: {_first_line(error)}; nothing more is logged there")


def loggers_of(names: Sequence[str] | None, folder: Path, say: Say, *, images: bool = False) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        names: any of "tensorboard", "csv", "mlflow" and "wandb"; None for TensorBoard.
        folder: of the run; what is logged on this machine lies in it.
        say: is told if a tracking server fails.
        images: tracking servers get images, too.

    Raises:
        TrainingError: there is no such logger, its library is not installed, or it cannot be set up.
    """
    made: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: _TensorBoard(folder, name="tensorboard", version=""),
        # A part of the run that is resumed gets a file of its own: `version_0`, `version_1`, ...
        "csv": lambda: CSVLogger(folder, name="csv", flush_logs_every_n_steps=1),
        "mlflow": lambda: _mlflow(folder, say, images=images),
        "wandb": lambda: _wandb(folder, say, images=images),
    }
    found: list[Logger] = []
    for name in dict.fromkeys(DEFAULT if names is None else names):
        if name not in made:
            raise TrainingError(f"a logger is one of {', '.join(made)}; got {name!r}")
        try:
            found.append(made[name]())
        except ModuleNotFoundError as error:
            raise TrainingError(f"--logger {name}: {name} is not installed; run: pip install {name}") from error
        except Exception as error:  # such as an address that is none
            raise TrainingError(f"--logger {name} cannot be set up: {_first_line(error)}") from error
    return found


def log_images(loggers: Sequence[Logger], rows: Tensor, step: int) -> None:
    """Log rows of images, (R, N, 3, H, W) in [0, 1], as one sheet, where images are logged."""
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).float().cpu()
    for logger in loggers:
        if isinstance(logger, _TensorBoard | TrackingServer):
            logger.log_sheet(sheet, step)


@contextmanager
def ended(loggers: Sequence[Logger]) -> Iterator[None]:
    """End the loggers' run with the block: as a success, as failed, or as stopped on request."""
    status = "failed"
    try:
        yield
        status = "success"
    except Interrupted:
        status = "KILLED"  # as MLflow calls it; the others only ask whether it is a success
        raise
    finally:
        for logger in loggers:
            logger.finalize(status)


def _mlflow(folder: Path, say: Say, *, images: bool) -> TrackingServer:
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
        run_name=folder.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        save_dir=str(folder / "mlruns"),
    )

    def send(sheet: Image.Image, step: int) -> None:
        logger.experiment.log_image(logger.run_id, sheet, artifact_file=f"images/step-{step:08d}.png")

    return TrackingServer("mlflow", logger, send if images else None, lambda: None, say)


def _wandb(folder: Path, say: Say, *, images: bool) -> TrackingServer:
    from lightning.pytorch.loggers import WandbLogger

    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    logger = WandbLogger(name=folder.name, save_dir=str(folder), project=project)

    def send(sheet: Image.Image, step: int) -> None:
        logger.log_image(_SHEET, [sheet], step)

    # Or the next training of this process would go on with this one's run.
    return TrackingServer("wandb", logger, send if images else None, lambda: logger.experiment.finish(), say)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
