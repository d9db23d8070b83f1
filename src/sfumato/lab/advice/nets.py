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
from sfumato.progress import Progress, Say

WHOLE = 100
"""Epochs of the whole schedule; a net with fewer is a lower bound."""
SKETCH = "sketch"
_MOST_IN_A_BATCH, _LEAST_STEPS = 128, 8
_LEAST_BITS, _MOST_HELD_OUT = 8, 2000
_OF_ITS_TIME = 0.85
"""The share of a training's time that its epochs are planned for; the rest is for what estimates miss."""
_WORTH_IT = 2
"""A finished training is made again, for longer, if there is time for so many times its epochs."""


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

    def recipe(self, part: str, epochs: int, trunk: str = "") -> AnyRecipe:
        """Return the recipe of a net, by its architecture, or of the sketch, on a trunk of such a name."""
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
        common: dict[str, Any] = {"name": f"advised-{part}", "data": data, "training": training}
        if not self.labelled:
            common["teacher_weight"] = 1.0
        if part != SKETCH:
            return parse_recipe({"kind": "classifier", "architecture": part, "teacher": teacher, **common})
        bits = max(_LEAST_BITS, class_bits(self.shape.classes))
        held_out = max(2, min(_MOST_HELD_OUT, self.images // 10))
        sketch = {"classifier": teacher, "trunk": trunk, "code_bits": bits, "held_out_images": held_out}
        return parse_recipe({"kind": "sketch", **sketch, **common})

    def epoch_s(self, part: str, speed: Speed, trunk: str = "") -> float:
        """Estimate the seconds of an epoch."""
        recipe = self.recipe(part, 1, trunk)
        return speed.training_s(recipe, self.images, classifier=self.classifier.net, shape=self.shape)

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
    epochs: int
    done: bool


def plan(lesson: Lesson, part: str, epochs: int) -> Planned | None:
    """Return the training of a part: one that was interrupted, else one that is long enough, else a new one.

    Args:
        lesson: see `Lesson`.
        part: an architecture, or the sketch on a trunk.
        epochs: that there is time for; with 0 there is no new one, and maybe none at all.

    Raises:
        SfumatoError: a run that is there is damaged.
    """
    finished = []
    for planned, run in _begun(lesson.folder, part):
        if state_of(run).name == "done":
            finished.append(Planned(run, planned, True))
        elif run.checkpoint.exists():
            return Planned(run, planned, False)
    longest = max(finished, key=lambda one: one.epochs, default=None)
    if longest is not None and (longest.epochs == WHOLE or epochs < _WORTH_IT * longest.epochs):
        return longest
    return Planned(Run(lesson.folder / f"{part}-{epochs}"), epochs, False) if epochs else None


def epochs_within(seconds: float, epoch_s: float) -> int:
    """Return how many epochs to plan for so many seconds, at most `WHOLE`."""
    return max(0, min(WHOLE, int(_OF_ITS_TIME * seconds / epoch_s)))


def make(lesson: Lesson, part: str, planned: Planned, seconds: float, trunk: str, progress: Progress, say: Say) -> Part:
    """Train, or resume, for at most so many seconds, and return what was made.

    Raises:
        SfumatoError: see `sfumato.lab.training.train`.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    started = time.monotonic()
    recipe = lesson.recipe(part, planned.epochs, trunk)
    if not planned.done:
        finish_training(
            recipe, planned.run, until=lambda: time.monotonic() > started + seconds, progress=progress, say=say
        )
    bundle = Bundle.load(planned.run.bundle)
    reached = int(bundle.provenance.epochs or 0)
    steps_s = bundle.provenance.training_seconds or 0.0  # those of earlier calls, too, if it was interrupted
    taken = steps_s if planned.done else max(steps_s, time.monotonic() - started)
    return Part(part, round(taken, 1), planned.epochs, WHOLE, reached, str(planned.run.bundle))


def _begun(folder: Path, part: str) -> Iterator[tuple[int, Run]]:
    for place in sorted(folder.glob(f"{part}-*")):
        if found := re.fullmatch(rf"{re.escape(part)}-(\d+)", place.name):
            yield int(found[1]), Run(place)
