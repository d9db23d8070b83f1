"""Report a training: to the callbacks of `sfumato.progress` and to TensorBoard."""

from __future__ import annotations

import time
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor

from sfumato.progress import Progress, Say, mute, silent


class Report:
    """Epoch, losses and images/s of a run; the same figures go to the logger. Only the first process reports.

    Args:
        fabric: its first logger, if it has one, gets the figures.
        epochs: of the whole run.
        steps: per epoch.
        batch_size: images per step.
        progress: is called after each step, with one stage for the whole run.
        say: is given a line after each validation.
    """

    def __init__(self, fabric: Fabric, epochs: int, steps: int, batch_size: int, progress: Progress, say: Say) -> None:
        self._fabric = fabric
        self._epochs, self._steps, self._batch_size = epochs, steps, batch_size
        self._progress, self._say = (progress, say) if fabric.is_global_zero else (silent, mute)
        self._losses = ""
        self._speed_since: tuple[float, int] | None = None

    def step(self, epoch: int, step: int) -> None:
        """Report a step; `epoch` counts from 0, `step` from 1 within it."""
        note = f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}{self._losses}"
        self._progress("training", epoch * self._steps + step, self._epochs * self._steps, note)

    def log(self, losses: dict[str, float], learning_rate: float, global_step: int) -> None:
        """Log the figures of one training batch; the next steps report them."""
        now, speed = time.monotonic(), ""
        if self._speed_since is not None:
            since, before = self._speed_since
            speed = f"  {(global_step - before) * self._batch_size / max(1e-9, now - since):.0f} images/s"
        self._speed_since = now, global_step
        self._losses = f"  {_spoken(losses)}{speed}"
        self._fabric.log_dict(
            {**{f"train/{name}": value for name, value in losses.items()}, "learning_rate": learning_rate},
            step=global_step,
        )

    def validated(self, figures: dict[str, float], epoch: int, images: Tensor | None) -> None:
        """Say and log the figures on the test images after `epoch` epochs.

        Args:
            figures: by name.
            epoch: how many epochs are done.
            images: rows of images (R, N, 3, H, W) for the log.
        """
        if not self._fabric.is_global_zero:
            return
        self._say(f"epoch {epoch}/{self._epochs}  test: {_spoken(figures)}")
        self._fabric.log_dict({f"test/{name}": value for name, value in figures.items()}, step=epoch * self._steps)
        if images is not None and self._fabric.loggers:
            rows, count, channels, height, width = images.shape
            sheet = images.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, count * width)
            logger: Any = self._fabric.logger
            logger.experiment.add_image(
                "original, obfuscated, reconstructed", sheet.float().cpu(), global_step=epoch * self._steps
            )


def _spoken(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
