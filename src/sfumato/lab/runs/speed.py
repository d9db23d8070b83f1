"""Rough estimates of how long trainings and audits take on this machine, from a few steps measured on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sfumato.lab.attacks.fit import BATCH
from sfumato.lab.audit.budget import Budget
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
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, SketchRecipe
from sfumato.lab.training.tasks import ClassifierTask, ObfuscationTask, SketchTask

_STEPS = 3
_BATCH = 64
"""Images of a measured step on a CPU."""
_SIDE = 32
_REST = 1.6
"""The rest of an audit (pairs, measures, sanity checks) over the training of its decoders, as measured."""


@dataclass(frozen=True)
class Entry:
    """A line of a list of what would be made.

    Attributes:
        what: the name of a training, or "audit of" it.
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


def device_macs(recipe: AnyRecipe, *, height: int = 32, width: int = 32, classes: int = 10) -> int:
    """Count the multiply-accumulates per image, of that size, of the network that a recipe trains."""
    return cost(_network(recipe, height, width, classes), height=height, width=width).macs


class Speed:
    """The speed of this machine, measured on demand.

    Args:
        device: that trains and attacks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[object, float] = {}

    def training_s(
        self,
        recipe: AnyRecipe,
        images: int,
        epochs: int,
        *,
        classifier: nn.Module | None = None,
        height: int = 32,
        width: int = 32,
        classes: int = 10,
    ) -> float:
        """Estimate the seconds of a training, from a few steps of its networks on smaller batches.

        Args:
            recipe: of a classifier or an obfuscator.
            images: per epoch.
            epochs: still to train.
            classifier: the frozen classifier of an obfuscator, or the teacher of a classifier: normalised images to
                logits.
            height: rows of the images.
            width: columns of the images.
            classes: of the classifier.

        Raises:
            TrainingError: this machine cannot compute as the recipe wants.
        """
        kind = recipe.architecture if isinstance(recipe, ClassifierRecipe) else recipe.kind
        if isinstance(recipe, ClassifierRecipe) and recipe.teacher is None:
            classifier = None
        macs = None if classifier is None else cost(classifier, height=height, width=width)
        key = kind, macs, height, width, recipe.training.precision
        if key not in self._known:
            task = _task(recipe, classifier, height, width, classes, self._device)
            self._known[key] = _image_seconds(task, (height, width), self._device)
        return self._known[key] * images * epochs

    def audit_s(self, budget: Budget, height: int = _SIDE, width: int = _SIDE) -> float:
        """Estimate the seconds of an audit with images of that size."""
        images = budget.images + budget.identification_images + budget.attribute_images
        return self.decoder_s * images * height * width / _SIDE**2

    @cached_property
    def decoder_s(self) -> float:
        """Seconds of an audit per training image of its decoders, for images of 32x32."""
        return decoder_seconds(self._device)


def decoder_seconds(device: torch.device) -> float:
    """Return the seconds of the strongest decoder per training image of 32x32, with its share of the audit's rest."""
    net, images = ResidualNet(6).to(device), torch.rand(BATCH, 6, _SIDE, _SIDE, device=device)
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> Tensor:
        with autocast(device):
            loss: Tensor = net(images).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return _REST * _step_seconds(step) / BATCH


def _network(recipe: AnyRecipe, height: int, width: int, classes: int) -> nn.Module:
    """The network that a recipe trains, with fresh weights."""
    if isinstance(recipe, ClassifierRecipe):
        return build_classifier(recipe.architecture, classes)
    if isinstance(recipe, SketchRecipe):
        return sketcher_of(recipe, height, width, classes=classes)
    return Obfuscator()


def _task(
    recipe: AnyRecipe, classifier: nn.Module | None, height: int, width: int, classes: int, device: torch.device
) -> nn.Module:
    """A task that takes as long as the recipe's: its networks with fresh weights, the plainest objective."""
    bfloat16 = choose_precision(recipe.training.precision, device).dense_bfloat16
    scale = Normalize((0.5,) * 3, (0.25,) * 3)
    net, frozen = _network(recipe, height, width, classes), None if classifier is None else fold_norms(classifier)
    if isinstance(recipe, ClassifierRecipe):
        return ClassifierTask(net, scale, teacher=frozen, bfloat16=bfloat16)
    assert frozen is not None
    if isinstance(recipe, SketchRecipe):
        assert isinstance(net, Sketcher)
        weights = {"teacher_weight": recipe.teacher_weight, "temperature": recipe.temperature}
        return SketchTask(net, frozen, scale, decoded_share=recipe.decoded_share, bfloat16=bfloat16, **weights)
    assert isinstance(net, Obfuscator)
    return ObfuscationTask(net, Deobfuscator(), frozen, scale, privacy_weight=1.0, bfloat16=bfloat16)


def _image_seconds(task: nn.Module, size: tuple[int, int], device: torch.device) -> float:
    """The seconds of a training step per image of its batch."""
    batch = 256 if device.type == "cuda" else _BATCH
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = torch.rand(batch, 3, *size, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    task.train()

    def step() -> Tensor:
        loss: Tensor = task(images, labels)["loss"]
        loss.backward()
        return loss

    return _step_seconds(step) / batch


def _step_seconds(step: Callable[[], Tensor]) -> float:
    """The seconds of one step after a first one, which is slower; reading the loss waits for a GPU."""
    float(step().detach())
    started = time.monotonic()
    for _ in range(_STEPS):
        float(step().detach())
    return (time.monotonic() - started) / _STEPS
