"""Rough estimates of how long trainings and audits take on this machine, from a few steps measured on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.lab.attacks.fit import BATCH
from sfumato.lab.attacks.prior import images_seen
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.sampler_checks import evaluations
from sfumato.lab.models import (
    Deobfuscator,
    Normalize,
    Obfuscator,
    Sketcher,
    autocast,
    build_classifier,
    cost,
    fold_norms,
    sketcher_of,
)
from sfumato.lab.models.decoders import ResidualNet
from sfumato.lab.models.precision import choose_precision
from sfumato.lab.training.batches import SMALL
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, SketchRecipe, teacher_views
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

_STEPS = 3
_BATCH = 64
"""Images of a measured step on a CPU."""
_SIDE = 32
_FORWARD = 3
"""A training step costs about three times its forward pass."""
_REST = 1.6
"""The rest of an audit (pairs, measures, sanity checks) over the training of its decoders, as measured."""
_EVALUATION = 0.2
"""Computing a network once, over training it on an image and the audit's rest of that."""
_COLUMN = 0.6
"""Training the attackers of label columns, under both threat models, over that of decoders on as many images."""


@dataclass(frozen=True)
class Entry:
    """A training, or "audit of" one, in a list of what would be made.

    Attributes:
        state: "done", "half done: epoch 3 of 20" or "missing".
        seconds: rough duration of the rest; None if nothing is left.
    """

    what: str
    state: str
    seconds: float | None

    @property
    def line(self) -> str:
        """The entry in words."""
        return f"{self.what}: {self.state}" + ("" if self.seconds is None else f", about {spoken(self.seconds)}")


def spoken(seconds: float) -> str:
    """Return words such as "40 seconds", "6 minutes" or "3 hours"."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} hours"


class Shape(NamedTuple):
    """Rows and columns of images, and how many classes they have."""

    height: int = 32
    width: int = 32
    classes: int = 10


def device_macs(recipe: AnyRecipe, shape: Shape) -> int:
    """Count the multiply-accumulates per image of the network that a recipe trains."""
    return cost(_network(recipe, shape), height=shape.height, width=shape.width).macs


def full_epochs(plan: TrainingRecipe, done: int = 0) -> float:
    """Return how many epochs on whole images take about as long as those of a plan that are left.

    Args:
        plan: with `small_epochs` or without.
        done: epochs that are finished.
    """
    small = max(0, min(plan.small_epochs, plan.epochs) - done)
    return plan.epochs - done - (1 - SMALL**2) * small


def taught_epochs(recipe: AnyRecipe, done: int = 0) -> int:
    """Return in how many of the epochs that are left the teacher of a recipe with `teacher_views` is computed.

    Args:
        recipe: without such views, the teacher is computed in all of them.
        done: epochs that are finished.
    """
    epochs = recipe.training.epochs
    return max(0, min(teacher_views(recipe) or epochs, epochs) - done)


class Speed:
    """The speed of this machine, or of its GPU, measured on demand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[object, tuple[float, float]] = {}

    def training_s(
        self,
        recipe: AnyRecipe,
        images: int,
        *,
        taught: int | None = None,
        classifier: nn.Module | None = None,
        shape: Shape | None = None,
    ) -> float:
        """Estimate the seconds of training on so many images, from a few steps of its networks on smaller batches.

        Args:
            recipe: of a classifier or an obfuscator.
            images: still to train on, with repetition.
            taught: of how many of them a teacher with `teacher_views` is computed, see `taught_epochs`; None for all.
            classifier: normalised images to logits: frozen, of an obfuscator, or the teacher of a classifier.
            shape: of the images; CIFAR-10's if None.

        Raises:
            TrainingError: this machine cannot compute as the recipe wants.
        """
        shape = shape or Shape()
        kind = recipe.architecture if isinstance(recipe, ClassifierRecipe) else recipe.kind
        trunk = recipe.trunk if isinstance(recipe, SketchRecipe) else None
        if isinstance(recipe, ClassifierRecipe) and recipe.teacher is None:
            classifier = None
        views = teacher_views(recipe) > 0
        macs = None if classifier is None else cost(classifier, height=shape.height, width=shape.width)
        key = kind, trunk, macs, shape.height, shape.width, recipe.training.precision, views
        if key not in self._known:
            task = _task(recipe, classifier, shape, self._device)
            step_s = _image_seconds(task, shape, self._device, taught=views)
            teacher_s = 0.0
            if views and isinstance(task, ClassifierTask | SketchTask):
                teacher_s = teacher_seconds(task, shape, self._device)
            self._known[key] = step_s, teacher_s
        step_s, teacher_s = self._known[key]
        return step_s * images + teacher_s * (images if taught is None else taught)

    def audit_s(self, budget: Budget, height: int = 32, width: int = 32, *, columns: bool = False) -> float:
        """Estimate the seconds of an audit with images of that size, and with label columns or without."""
        images: float = budget.images + budget.identification_images + budget.attribute_images
        images += _COLUMN * budget.column_images if columns else 0
        computed = evaluations(budget) + sum(
            (trial.test_images or 0) * ATTACKERS[trial.attacker].evaluations(trial.steps) for trial in budget.trials
        )
        return self.decoder_s * (images + _EVALUATION * computed) * height * width / _SIDE**2

    def prior_s(self, budget: Budget, height: int = 32, width: int = 32) -> float:
        """Estimate the seconds of training the image prior that a budget needs, for images of that size."""
        images = images_seen(budget.prior_images, height, width)
        return self.decoder_s / _REST * images * height * width / _SIDE**2

    def frames_s(self, images: int, payloads: int, height: int, width: int) -> float:
        """Estimate the seconds of a decoder that learns from so many images and reconstructs so many payloads."""
        return self.decoder_s * (images + payloads / _FORWARD) * height * width / _SIDE**2

    @cached_property
    def decoder_s(self) -> float:
        """Seconds of an audit per training image of its decoders, for images of 32x32."""
        return decoder_seconds(self._device)


def decoder_seconds(device: torch.device) -> float:
    """Return the seconds of the strongest decoder per training image of 32x32, with its share of the audit's rest."""
    net, images = ResidualNet(6).to(device), torch.rand(BATCH, 6, _SIDE, _SIDE, device=device)
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> Any:
        with autocast(device):
            loss = net(images).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return _REST * _step_seconds(step) / BATCH


def _network(recipe: AnyRecipe, shape: Shape) -> nn.Module:
    """The network that a recipe trains, with fresh weights."""
    if isinstance(recipe, ClassifierRecipe):
        return build_classifier(recipe.architecture, shape.classes)
    if isinstance(recipe, SketchRecipe):
        return sketcher_of(recipe, shape.height, shape.width, classes=shape.classes)
    return Obfuscator()


def _task(recipe: AnyRecipe, classifier: nn.Module | None, shape: Shape, device: torch.device) -> nn.Module:
    """A task that takes as long as the recipe's: its networks with fresh weights, the plainest objective."""
    bfloat16 = choose_precision(recipe.training.precision, device).dense_bfloat16
    scale = Normalize((0.5,) * 3, (0.25,) * 3)
    net, frozen = _network(recipe, shape), None if classifier is None else fold_norms(classifier)
    if isinstance(recipe, ClassifierRecipe):
        return ClassifierTask(net, scale, teacher=frozen, bfloat16=bfloat16)
    assert frozen is not None
    if isinstance(recipe, SketchRecipe):
        assert isinstance(net, Sketcher)
        weight, temperature, share = recipe.teacher_weight, recipe.temperature, recipe.decoded_share
        return SketchTask(
            net, frozen, scale, teacher_weight=weight, temperature=temperature, decoded_share=share, bfloat16=bfloat16
        )
    assert isinstance(net, Obfuscator)
    return ObfuscationTask(net, Deobfuscator(), frozen, scale, privacy_weight=1.0, bfloat16=bfloat16)


def _image_seconds(task: nn.Module, shape: Shape, device: torch.device, *, taught: bool) -> float:
    """The seconds of a training step per image of its batch; if `taught`, the teacher's logits are known."""
    images = _images(task, shape, device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    given = (torch.zeros(len(images), shape.classes, device=device),) if taught else ()
    task.train()

    def step() -> Any:
        loss = task(images, labels, *given)["loss"]
        loss.backward()
        return loss

    return _step_seconds(step) / len(images)


@torch.no_grad()
def teacher_seconds(task: ClassifierTask | SketchTask, shape: Shape, device: torch.device) -> float:
    """Return the seconds of a task's teacher per image."""
    images = _images(task, shape, device)
    return _step_seconds(lambda: task.taught(images).sum()) / len(images)


def _images(task: nn.Module, shape: Shape, device: torch.device) -> Tensor:
    """Random images, as many as a measured step takes; the task is moved to where they are."""
    batch = 256 if device.type == "cuda" else _BATCH
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 3, shape.height, shape.width, device=device)
    return images.to(memory_format=torch.channels_last)


def _step_seconds(step: Callable[[], Any]) -> float:
    """The seconds of one step after a first one, which is slower; reading the loss waits for a GPU."""
    float(step().detach())
    started = time.monotonic()
    for _ in range(_STEPS):
        float(step().detach())
    return (time.monotonic() - started) / _STEPS
