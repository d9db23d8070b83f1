"""What people see of a run: a progress bar on standard error and TensorBoard logs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor


class Progress:
    """A bar over all steps with losses, images/s and time left; the same figures go to the logger.

    Only the first process shows anything.

    Args:
        fabric: its first logger, if it has one, gets the figures.
        epochs: of the whole run.
        steps: per epoch.
        batch_size: images per step.
    """

    def __init__(self, fabric: Fabric, epochs: int, steps: int, batch_size: int) -> None:
        self._fabric = fabric
        self._epochs, self._steps, self._batch_size = epochs, steps, batch_size
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not fabric.is_global_zero or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=epochs * steps, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, epoch: int, step: int) -> None:
        """Moves the bar; `epoch` counts from 0, `step` from 1 within it."""
        self._bar.update(self._task, completed=epoch * self._steps + step, description=f"epoch {epoch + 1}")

    def log(self, losses: dict[str, float], learning_rate: float, global_step: int) -> None:
        """Shows and logs the figures of one training batch."""
        speed = self._bar.tasks[0].speed or 0.0
        self._bar.update(self._task, figures=f"{_spoken(losses)}  {speed * self._batch_size:.0f} images/s")
        self._fabric.log_dict(
            {**{f"train/{name}": value for name, value in losses.items()}, "learning_rate": learning_rate},
            step=global_step,
        )

    def look(self, figures: dict[str, float], epoch: int, images: Tensor | None) -> None:
        """Prints and logs the figures of a look at the test images after `epoch` epochs."""
        if not self._fabric.is_global_zero:
            return
        self._console.print(f"epoch {epoch}/{self._epochs}  test: {_spoken(figures)}", soft_wrap=True)
        self._fabric.log_dict({f"test/{name}": value for name, value in figures.items()}, step=epoch * self._steps)
        if images is not None and self._fabric.loggers:
            rows, count, channels, height, width = images.shape
            sheet = images.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, count * width)
            logger: Any = self._fabric.logger
            logger.experiment.add_image(
                "original, obfuscated, reconstructed", sheet.float().cpu(), global_step=epoch * self._steps
            )


def tensorboard_folder(run: Path) -> Path:
    """Where a run's TensorBoard logs lie."""
    return run / "tensorboard"


def _spoken(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
