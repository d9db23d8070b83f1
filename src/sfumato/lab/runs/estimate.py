"""Estimate how long a recipe takes on this machine: train and time a few of its steps, extrapolate the rest."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.artifacts.provenance import provenance
from sfumato.errors import TrainingError
from sfumato.lab.data import ImageSet, Stream
from sfumato.lab.models.precision import device_name
from sfumato.lab.runs.speed import Shape, full_epochs, taught_epochs, teacher_seconds
from sfumato.lab.training.batches import Images
from sfumato.lab.training.engine import Options, fit, optimizers_of, validate
from sfumato.lab.training.recipe import AnyRecipe, teacher_views
from sfumato.lab.training.setup import Prepared, Run, launch, prepare, starting_from
from sfumato.lab.training.tasks import ClassifierTask, SketchTask
from sfumato.progress import Progress, silent

STEPS = 24
_WARM_UP = 4
_FEWEST = 4
_TEST_BATCHES = 2


@dataclass(frozen=True)
class Extrapolated:
    """The whole training, extrapolated: hours of all its steps, of all validations, and of both."""

    epochs: int
    steps_per_epoch: int
    training_hours: float
    testing_hours: float
    hours: float


@dataclass(frozen=True)
class Estimate:
    """How long a recipe takes.

    Attributes:
        what: the conditions, in words.
        step_s: median of a step.
        step_s_range: of the fastest and the slowest step.
        images_per_s: training images.
        data_share: share of the time spent waiting for images.
        peak_memory_mb: of this process, of the largest of its workers, and on a GPU its own.
        measured: provenance.
    """

    what: str
    name: str
    step_s: float
    step_s_range: tuple[float, float]
    steps_timed: int
    images_per_s: float
    data_share: float
    peak_memory_mb: dict[str, float]
    extrapolated: Extrapolated
    recipe: dict[str, object]
    measured: dict[str, object]


def estimate(
    recipe: AnyRecipe, *, accelerator: str = "auto", steps: int = STEPS, progress: Progress = silent
) -> Estimate:
    """Train a few steps of a recipe, discard them, and estimate how long all of it would take.

    With substitutes for the real images, `data.train_images` is the number of real images per epoch. `accelerator` is
    as Lightning Fabric names it; a few more than `steps` are trained, which are not timed.

    Raises:
        SfumatoError: as `sfumato.lab.training.train`; or there are too few images.
    """
    recipe = starting_from(None, recipe)
    plan = recipe.training
    with tempfile.TemporaryDirectory(prefix="sfumato-estimate-") as work:
        fabric, precision = launch(plan, Path(work), Options(accelerator, loggers=()))
        made = prepare(recipe, Run(Path(work)), fabric, precision)
        all_steps = len(made.train) // plan.batch_size
        timed = _Timed(made.train, min(all_steps, steps + _WARM_UP + 1), plan.batch_size, fabric.device)
        few = made.test.subset(_TEST_BATCHES * plan.batch_size)
        fit(
            fabric,
            _Taught(made.task, len(made.train.names)) if teacher_views(recipe) else made.task,
            plan.model_copy(update={"epochs": 1, "validate_every": 1, "small_epochs": 0, "int8_epochs": 0}),
            optimizers=optimizers_of(plan, made.task, steps=all_steps),
            train=timed,
            test=few.subset(plan.batch_size),
            augmentation=recipe.data.augmentation,
            checkpoint=Run(Path(work)).checkpoint,
            identity="estimate",
            options=Options(progress=progress),
        )
        started = time.monotonic()
        validate(fabric, made.task, few, plan.batch_size, channels_last=plan.channels_last)
        test_s = (time.monotonic() - started) / len(few)
        return _found(made, timed, all_steps, test_s)


def _found(made: Prepared, timed: _Timed, all_steps: int, test_s: float) -> Estimate:
    recipe, device = made.recipe, made.fabric.device
    plan = recipe.training
    durations, waits = timed.durations()
    step_s = statistics.median(durations)
    validations = -(-plan.epochs // plan.validate_every)
    tested = recipe.data.test_images or len(made.test)
    training_s, testing_s = step_s * all_steps * full_epochs(plan), test_s * tested * validations
    if teacher_views(recipe) and isinstance(made.task, ClassifierTask | SketchTask):
        shape = Shape(made.preprocessing.height, made.preprocessing.width, len(made.train.names))
        training_s += teacher_seconds(made.task, shape, device) * len(made.train) * taught_epochs(recipe)
    return Estimate(
        what=(
            f"An extrapolation from {len(durations)} training steps on this machine, not a training; reading the "
            "first images, export and the last evaluation are left out."
        ),
        name=recipe.name,
        step_s=round(step_s, 4),
        step_s_range=(round(min(durations), 4), round(max(durations), 4)),
        steps_timed=len(durations),
        images_per_s=round(plan.batch_size / step_s, 2),
        data_share=round(sum(waits) / sum(durations), 4),
        peak_memory_mb=_peak_memory_mb(device),
        extrapolated=Extrapolated(
            epochs=plan.epochs,
            steps_per_epoch=all_steps,
            training_hours=round(training_s / 3600, 2),
            testing_hours=round(testing_s / 3600, 2),
            hours=round((training_s + testing_s) / 3600, 2),
        ),
        recipe=recipe.model_dump(mode="json"),
        measured=provenance(
            seed=plan.seed,
            accelerator=device.type,
            precision=str(made.precision),
            device=device_name(device),
            threads=torch.get_num_threads(),
            train_images=len(durations) * plan.batch_size,
            data=made.train.source,
            streamed=isinstance(made.train, Stream),
        ).to_json(),
    )


class _Taught(nn.Module):
    """A task as it is in most epochs with `teacher_views`: the teacher's logits are known."""

    def __init__(self, task: nn.Module, classes: int) -> None:
        super().__init__()
        self.task = task
        self._classes = classes

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        taught = torch.zeros(len(images), self._classes, device=images.device)
        found: dict[str, Tensor] = self.task(images, labels, taught)
        return found


class _Timed:
    """The first batches of an epoch, and the seconds of each step and of the wait for its images."""

    def __init__(self, images: ImageSet | Stream, steps: int, batch_size: int, device: torch.device) -> None:
        if steps < _WARM_UP + _FEWEST:
            raise TrainingError(
                f"{steps} steps are too few to time: an epoch must have {_WARM_UP + _FEWEST} or more; lower "
                "training.batch_size or use more images"
            )
        count = steps * batch_size
        self._few: Images = replace(images, images=count) if isinstance(images, Stream) else images.subset(count)
        self._device = device
        self._requested: list[float] = []
        self._waits: list[float] = []

    def __len__(self) -> int:
        return len(self._few)

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._few.batches(seed, batch_size, first=first, rank=rank, world_size=world_size)
        for _ in range(len(self) // batch_size):
            self._requested.append(self._now())
            batch = next(batches)
            self._waits.append(self._now() - self._requested[-1])
            yield batch

    def durations(self) -> tuple[list[float], list[float]]:
        """The seconds of each step and of its wait, without the first few steps and the last, whose end is unknown."""
        steps = [end - start for start, end in pairwise(self._requested)]
        return steps[_WARM_UP:], self._waits[_WARM_UP : len(steps)]

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
