"""How long a recipe would take on this machine: a few of its steps are trained and timed, the rest is extrapolated."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.lab.data import ImageSet, Stream
from sfumato.errors import TrainingError
from sfumato.lab.models.precision import Precision
from sfumato.artifacts.provenance import provenance
from sfumato.lab.models.precision import device_name
from sfumato.lab.training.engine import Images, Schedule, fit, validate
from sfumato.lab.training.optimizer import optimizer_of
from sfumato.lab.training.setup import Prepared, Run, prepare, starting_from
from sfumato.lab.training.recipe import AnyRecipe
from sfumato.lab.training.context import augmentation_of, launch
from sfumato.progress import Progress, silent

STEPS = 24
_WARM_UP = 4
_FEWEST = 4
_TEST_BATCHES = 2


def estimate(
    recipe: AnyRecipe, *, accelerator: str = "auto", steps: int = STEPS, progress: Progress = silent
) -> dict[str, Any]:
    """Trains a few steps of a recipe, keeps nothing of them, and says how long all of it would take.

    Args:
        recipe: validated. Of images that stand in for the real ones, `data.train_images` says how many an epoch of
            the real ones has.
        accelerator: as Lightning Fabric names it.
        steps: to train and time, besides a few that are not timed.
        progress: is told of each step.

    Returns:
        "step_s", the median; "step_s_range", from the fastest to the slowest; "images_per_s"; "data_share", of the
        time that was waited for images; "peak_memory_mb", of this process and of the largest of its workers, and on a
        GPU its own; "extrapolated" steps and hours; the recipe, and provenance.

    Raises:
        SfumatoError: as `sfumato.lab.training.train`; or there are too few images.
    """
    recipe = starting_from(None, recipe)
    plan = recipe.training
    with tempfile.TemporaryDirectory(prefix="sfumato-estimate-") as work:
        fabric, precision = launch(plan, Path(work), accelerator, 1)
        made = prepare(recipe, Run(Path(work)), fabric, bfloat16=precision.dense_bfloat16)
        all_steps = len(made.train) // plan.batch_size
        timed = _Timed(made.train, min(all_steps, steps + _WARM_UP + 1), plan.batch_size, fabric.device)
        optimizer, scheduler = optimizer_of(plan, made.task, steps=all_steps)
        few = made.test.subset(_TEST_BATCHES * plan.batch_size)
        fit(
            fabric,
            made.task,
            optimizer,
            scheduler,
            train=timed,
            test=few.subset(plan.batch_size),
            augmentation=augmentation_of(recipe.data),
            schedule=Schedule(1, plan.batch_size, plan.seed, 1, plan.channels_last, plan.compile),
            checkpoint=Run(Path(work)).checkpoint,
            identity="estimate",
            progress=progress,
        )
        started = time.monotonic()
        validate(fabric, made.task, few, plan.batch_size, channels_last=plan.channels_last)
        test_s = (time.monotonic() - started) / len(few)
        return _found(recipe, made, timed, all_steps, test_s, fabric.device, precision)


def _found(
    recipe: AnyRecipe,
    made: Prepared,
    timed: _Timed,
    all_steps: int,
    test_s: float,
    device: torch.device,
    precision: Precision,
) -> dict[str, Any]:
    plan = recipe.training
    durations, waits = timed.durations()
    step_s = statistics.median(durations)
    looks = -(-plan.epochs // plan.validate_every)
    tested = recipe.data.test_images or len(made.test)
    training_s, testing_s = step_s * all_steps * plan.epochs, test_s * tested * looks
    return {
        "what": (
            f"An extrapolation from {len(durations)} training steps on this machine, not a training; reading the "
            "first images, export and the last evaluation are left out."
        ),
        "name": recipe.name,
        "step_s": round(step_s, 4),
        "step_s_range": [round(min(durations), 4), round(max(durations), 4)],
        "steps_timed": len(durations),
        "images_per_s": round(plan.batch_size / step_s, 2),
        "data_share": round(sum(waits) / sum(durations), 4),
        "peak_memory_mb": _peak_memory_mb(device),
        "extrapolated": {
            "epochs": plan.epochs,
            "steps_per_epoch": all_steps,
            "training_hours": round(training_s / 3600, 2),
            "testing_hours": round(testing_s / 3600, 2),
            "hours": round((training_s + testing_s) / 3600, 2),
        },
        "recipe": recipe.model_dump(mode="json"),
        "measured": provenance(
            seed=plan.seed,
            accelerator=device.type,
            precision=str(precision),
            device=device_name(device),
            threads=torch.get_num_threads(),
            train_images=len(durations) * plan.batch_size,
            data=made.train.source,
            streamed=isinstance(made.train, Stream),
        ).to_json(),
    }


class _Timed:
    """The first batches of an epoch, and when each was asked for and came."""

    def __init__(self, images: ImageSet | Stream, steps: int, batch_size: int, device: torch.device) -> None:
        if steps < _WARM_UP + _FEWEST:
            raise TrainingError(
                f"{steps} steps are too few to time: an epoch must have {_WARM_UP + _FEWEST} or more; lower "
                "training.batch_size or use more images"
            )
        count = steps * batch_size
        self._few: Images = (
            replace(images, images=count) if isinstance(images, Stream) else images.subset(count)
        )
        self._device = device
        self._asked: list[float] = []
        self._came: list[float] = []

    def __len__(self) -> int:
        return len(self._few)

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images' batches, timed."""
        batches = self._few.batches(seed, batch_size, first=first, rank=rank, world_size=world_size)
        for _ in range(len(self) // batch_size):
            self._asked.append(self._now())
            batch = next(batches)
            self._came.append(self._now())
            yield batch

    def durations(self) -> tuple[list[float], list[float]]:
        """Seconds of each step, and those of them that were waited for its images, without the first few steps."""
        ends = self._asked[1:]  # the last step's end is not seen
        steps = [end - start for start, end in zip(self._asked, ends, strict=False)]
        waits = [came - asked for asked, came in zip(self._asked, self._came, strict=True)]
        return steps[_WARM_UP:], waits[_WARM_UP : len(steps)]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()


def _peak_memory_mb(device: torch.device) -> dict[str, float]:
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
        whose = {"process": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}
        found = {name: round(resource.getrusage(who).ru_maxrss / unit, 1) for name, who in whose.items()}
    if device.type == "cuda":
        found["gpu"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return found
