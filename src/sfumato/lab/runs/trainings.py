"""How far a training is, resuming it, and the folder that it writes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.artifacts.bundle import MANIFEST, Bundle
from sfumato.errors import TrainingError
from sfumato.lab.models.checkpoint import load_checkpoint
from sfumato.lab.training import Run, train
from sfumato.lab.training.engine import never
from sfumato.lab.training.recipe import AnyRecipe
from sfumato.progress import Progress, Say, mute, silent


@dataclass(frozen=True)
class State:
    """How far a training is.

    Attributes:
        name: "done", "half done" or "missing".
        epochs: finished so far, if it is half done.
    """

    name: Literal["done", "half done", "missing"]
    epochs: int = 0

    def of(self, epochs: int) -> str:
        """Return it in words, such as "half done: epoch 3 of 20"; `epochs` are those of the whole training."""
        return f"half done: epoch {self.epochs} of {epochs}" if self.name == "half done" else self.name


def check_writable(folder: Path) -> None:
    """Make the folder, and check before hours of training that results can be written to it.

    Raises:
        TrainingError: they cannot.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"the folder {folder} cannot be written: {error.strerror or error}") from error


def state_of(run: Run) -> State:
    """Return how far a run is.

    Raises:
        BundleError: its bundle is damaged.
        TrainingError: its checkpoint is damaged.
    """
    # Without provenance it was interrupted between its networks and their figures.
    if (run.bundle / MANIFEST).is_file() and Bundle.load(run.bundle).provenance.written:
        return State("done")
    if not run.checkpoint.exists():
        return State("missing")
    return State("half done", int(load_checkpoint(run.checkpoint, frozenset({"epoch"}))["epoch"]))


def finish_training(
    recipe: AnyRecipe,
    run: Run,
    *,
    start: Bundle | None = None,
    until: Callable[[], bool] = never,
    progress: Progress = silent,
    say: Say = mute,
) -> None:
    """Train, or resume a training that was interrupted; `start` and `until` as in `sfumato.lab.training.train`.

    Raises:
        SfumatoError: see `sfumato.lab.training.train`.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    try:
        train(recipe, run.folder, resume=run.checkpoint.exists(), start=start, until=until, progress=progress, say=say)
    except TrainingError as error:
        raise TrainingError(f"{run.folder}: {error}; move it away to train from the start") from error
