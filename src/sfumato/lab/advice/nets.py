"""What is trained for an advice, in the time that there is: its recipes, and its folders.

The schedule is that of `recipes/cifar10-device-*.toml` without the epochs in 8-bit integers, at any size of images.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import RecipeError
from sfumato.lab.advice.schema import Part
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.models import class_bits
from sfumato.lab.models.device_nets import DEVICE_NETS
from sfumato.lab.runs.speed import Shape, Speed, device_macs
from sfumato.lab.runs.trainings import finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, Run
from sfumato.lab.training.recipe import AnyRecipe, parse_recipe
from sfumato.lab.training.teacher_views import most_views
from sfumato.progress import Progress, Say

WHOLE = 100
"""Epochs of the whole schedule; a net with fewer is a lower bound."""
SKETCH = "sketch"
_MOST_IN_A_BATCH, _LEAST_STEPS = 128, 8
_LEAST_BITS, _MOST_HELD_OUT = 8, 2000
_OF_ITS_TIME = 0.85
"""The share of a training's time that its epochs are planned for; the rest is for what estimates miss."""
_WORTH_IT = 2
"""A finished training is made again, for longer, if there is time for so many times its epochs, or its views."""


@dataclass(frozen=True)
class Epoch:
    """The seconds of an epoch: of the student's steps, and of the teacher, if it is computed."""

    student_s: float
    teacher_s: float

    @property
    def whole_s(self) -> float:
        """Of both."""
        return self.student_s + self.teacher_s

    def training_s(self, epochs: int, views: int) -> float:
        """Return the seconds of so many epochs; with `views`, the teacher is computed in so many of them alone."""
        return epochs * self.student_s + min(views or epochs, epochs) * self.teacher_s

    def times(self, factor: float) -> Epoch:
        """Return the same on a machine that takes so many times as long."""
        return Epoch(factor * self.student_s, factor * self.teacher_s)


@dataclass(frozen=True)
class Schedule:
    """How long a net is trained.

    Attributes:
        epochs: at most `WHOLE`; 0 if there is no time for any.
        views: of each image, that the teacher is computed on; 0 for new ones in each epoch.
    """

    epochs: int
    views: int = 0

    def worth(self, former: Schedule) -> bool:
        """Return whether a net of a former schedule is made again: for twice its epochs, or with twice its views."""
        views, before = self.views or self.epochs, former.views or former.epochs
        more = self.epochs >= former.epochs and views >= _WORTH_IT * before
        return more or self.epochs >= _WORTH_IT * former.epochs


@dataclass(frozen=True)
class Lesson:
    """What nets learn from, and for.

    Attributes:
        classifier: the teacher, and what a sketch is for.
        path: of its bundle.
        data: the source of the images.
        identity: of classifier and images.
        images: training images.
        labelled: whether they have labels; if not, the classifier's predictions are all that is learned.
        folder: of the trainings.
    """

    classifier: FrozenClassifier
    path: Path
    data: str
    identity: str
    images: int
    labelled: bool
    folder: Path
    allow_outside: bool = False

    @property
    def shape(self) -> Shape:
        """Of an image."""
        size = self.classifier.preprocessing
        return Shape(size.height, size.width, len(self.classifier.labels))

    def recipe(self, part: str, epochs: int, trunk: str = "", views: int = 0) -> AnyRecipe:
        """Return the recipe of a net, by its architecture, or of the sketch, on a trunk of such a name.

        With `views`, the teacher is computed on so many of each image alone; see `sfumato.lab.training.teacher_views`.
        """
        side, teacher = min(self.shape.height, self.shape.width), self.path.as_posix()
        net = trunk or part
        nano = net == "device-nano"
        data: dict[str, Any] = {
            "source": self.data,
            "size": [self.shape.height, self.shape.width],
            "allow_outside": self.allow_outside,
            "flip": True,
            "crop_padding": min(16, max(1, side // (16 if nano else 8))),
            "cutout": 0 if nano else side // 4,
        }
        training = {
            "epochs": epochs,
            "batch_size": max(2, min(_MOST_IN_A_BATCH, self.images // _LEAST_STEPS)),
            "optimizer": "sgd",
            "learning_rate": 0.2,
            "weight_decay": 3e-4,
            "schedule": "one-cycle",
            "warmup": 0.15,
            "weight_average": 0.999,
            "validate_every": epochs,
        }
        common: dict[str, Any] = {"name": f"advised-{part}", "data": data, "training": training, "teacher_views": views}
        if not self.labelled:
            common["teacher_weight"] = 1.0
        if part != SKETCH:
            return parse_recipe({"kind": "classifier", "architecture": part, "teacher": teacher, **common})
        bits = max(_LEAST_BITS, class_bits(self.shape.classes))
        held_out = max(2, min(_MOST_HELD_OUT, self.images // 10))
        sketch = {"classifier": teacher, "trunk": trunk, "code_bits": bits, "held_out_images": held_out}
        return parse_recipe({"kind": "sketch", **sketch, **common})

    def epoch(self, part: str, speed: Speed, trunk: str = "") -> Epoch:
        """Estimate the seconds of an epoch."""
        recipe = self.recipe(part, 1, trunk, views=1)
        student_s = speed.training_s(recipe, self.images, taught=0, classifier=self.classifier.net, shape=self.shape)
        whole_s = speed.training_s(recipe, self.images, classifier=self.classifier.net, shape=self.shape)
        return Epoch(student_s, whole_s - student_s)

    @property
    def most_views(self) -> int:
        """How many views of each image the teacher's predictions may be kept of."""
        return most_views(self.images, self.shape.classes)

    def nets(self, budget: str) -> list[str]:
        """Return the architectures within a budget, the smallest first.

        Args:
            budget: "nano", "paper" or "large", or a number of multiply-accumulates per image, such as 5e6.

        Raises:
            RecipeError: the budget is no such thing, or below what any architecture takes.
        """
        names = list(DEVICE_NETS)
        if f"device-{budget}" in names:
            return names[: names.index(f"device-{budget}") + 1]
        try:
            most = float(budget)
        except ValueError:
            short = ", ".join(name.removeprefix("device-") for name in names)
            raise RecipeError(
                f"the budget {budget!r} is unknown; give one of {short}, or multiply-accumulates per image, such as 5e6"
            ) from None
        macs = {name: device_macs(self._net(name), self.shape) for name in names}
        if not (within := [name for name in names if macs[name] <= most]):
            name = min(names, key=lambda one: macs[one])
            raise RecipeError(
                f"no net takes at most {most:,.0f} multiply-accumulates for images of {self.shape.height}x"
                f"{self.shape.width}; the smallest, {name}, takes {macs[name]:,}"
            )
        return within

    def _net(self, name: str) -> ClassifierRecipe:
        found = self.recipe(name, 1)
        assert isinstance(found, ClassifierRecipe)
        return found


@dataclass(frozen=True)
class Planned:
    """A training that was chosen for a part: begun, finished before, or new.

    Attributes:
        done: it was finished in an earlier call.
    """

    run: Run
    schedule: Schedule
    done: bool


def plan(lesson: Lesson, part: str, schedule: Schedule) -> Planned | None:
    """Return the training of a part: one that was interrupted, else one that is long enough, else a new one.

    Args:
        lesson: see `Lesson`.
        part: an architecture, or the sketch on a trunk.
        schedule: that there is time for; with 0 epochs there is no new one, and maybe none at all.

    Raises:
        SfumatoError: a run that is there is damaged.
    """
    finished = []
    for found, run in _begun(lesson.folder, part):
        if state_of(run).name == "done":
            finished.append(Planned(run, found, True))
        elif run.checkpoint.exists():
            return Planned(run, found, False)
    longest = max(finished, key=lambda one: (one.schedule.epochs, one.schedule.views or WHOLE), default=None)
    if longest is not None and not schedule.worth(longest.schedule):
        return longest
    views = f"-views-{schedule.views}" if schedule.views else ""
    run = Run(lesson.folder / f"{part}-{schedule.epochs}{views}")
    return Planned(run, schedule, False) if schedule.epochs else None


def schedule_within(seconds: float, epoch: Epoch, most: int) -> Schedule:
    """Return how long to train in so many seconds.

    The teacher gets half of the time, or all that `WHOLE` epochs of the student leave: neither the epochs nor the views
    are then less than half of what any other division has. It is computed on one view at least; where the views would
    be as many as the epochs, in every step instead.

    Args:
        seconds: that there are, of which `_OF_ITS_TIME` is planned for.
        epoch: its seconds.
        most: views that may be kept.
    """
    time_s = _OF_ITS_TIME * seconds

    def epochs_with(views: int) -> int:
        return max(0, min(WHOLE, int((time_s - views * epoch.teacher_s) / epoch.student_s)))

    views = max(1, int(max(time_s / 2, time_s - WHOLE * epoch.student_s) / max(1e-9, epoch.teacher_s)))
    if not most or views >= epochs_with(views):
        return Schedule(max(0, min(WHOLE, int(time_s / epoch.whole_s))))
    return Schedule(epochs_with(min(views, most)), min(views, most))


def make(lesson: Lesson, part: str, planned: Planned, seconds: float, trunk: str, progress: Progress, say: Say) -> Part:
    """Train, or resume, for at most so many seconds, and return what was made.

    Raises:
        SfumatoError: see `sfumato.lab.training.train`.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    started, schedule = time.monotonic(), planned.schedule
    recipe = lesson.recipe(part, schedule.epochs, trunk, schedule.views)
    if not planned.done:
        finish_training(
            recipe, planned.run, until=lambda: time.monotonic() > started + seconds, progress=progress, say=say
        )
    bundle = Bundle.load(planned.run.bundle)
    reached = int(bundle.provenance.epochs or 0)
    steps_s = bundle.provenance.training_seconds or 0.0  # those of earlier calls, too, if it was interrupted
    taken = steps_s if planned.done else max(steps_s, time.monotonic() - started)
    return Part(part, round(taken, 1), schedule.epochs, WHOLE, reached, str(planned.run.bundle), schedule.views)


def _begun(folder: Path, part: str) -> Iterator[tuple[Schedule, Run]]:
    for place in sorted(folder.glob(f"{part}-*")):
        if found := re.fullmatch(rf"{re.escape(part)}-(\d+)(?:-views-(\d+))?", place.name):
            yield Schedule(int(found[1]), int(found[2] or 0)), Run(place)
