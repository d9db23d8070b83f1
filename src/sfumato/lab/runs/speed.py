"""Rough estimates of how long trainings and audits take on this machine, from a few steps measured on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.speed import decoder_seconds, spoken
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, build_classifier, cost, fold_norms, sketcher_of
from sfumato.lab.models.precision import choose_precision
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, SketchRecipe
from sfumato.lab.training.tasks import ClassifierTask, ObfuscationTask, SketchTask

_STEPS = 2
_BATCH = 64
"""Images of a measured step on a CPU."""


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


def device_macs(recipe: AnyRecipe, *, height: int = 32, width: int = 32, classes: int = 10) -> int:
    """Count the multiply-accumulates per image of the network that a recipe trains.

    Args:
        recipe: of a classifier or an obfuscator.
        height: rows of the images.
        width: columns of the images.
        classes: of the classifier.
    """
    net: nn.Module
    if isinstance(recipe, ClassifierRecipe):
        net = build_classifier(recipe.architecture, classes)
    elif isinstance(recipe, SketchRecipe):
        net = sketcher_of(recipe, height, width, classes=classes)
    else:
        net = Obfuscator()
    return cost(net, height=height, width=width).macs


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

    def audit_s(self, budget: Budget) -> float:
        """Estimate the seconds of an audit."""
        return self.decoder_s * (budget.images + budget.identification_images + budget.attribute_images)

    @cached_property
    def decoder_s(self) -> float:
        """Seconds of an audit per training image of its decoders."""
        return decoder_seconds(self._device)


def _task(
    recipe: AnyRecipe, classifier: nn.Module | None, height: int, width: int, classes: int, device: torch.device
) -> nn.Module:
    """Return a task that takes as long as the recipe's: its networks with fresh weights, the plainest objective."""
    bfloat16 = choose_precision(recipe.training.precision, device).dense_bfloat16
    scale = Normalize((0.5,) * 3, (0.25,) * 3)
    if isinstance(recipe, ClassifierRecipe):
        teacher = None if classifier is None else fold_norms(classifier)
        net = build_classifier(recipe.architecture, classes)
        return ClassifierTask(net, scale, teacher=teacher, bfloat16=bfloat16)
    assert classifier is not None
    frozen = fold_norms(classifier)
    if isinstance(recipe, SketchRecipe):
        return SketchTask(
            sketcher_of(recipe, height, width, classes=classes),
            frozen,
            scale,
            teacher_weight=recipe.teacher_weight,
            temperature=recipe.temperature,
            decoded_share=recipe.decoded_share,
            bfloat16=bfloat16,
        )
    return ObfuscationTask(Obfuscator(), Deobfuscator(), frozen, scale, privacy_weight=1.0, bfloat16=bfloat16)


def _image_seconds(task: nn.Module, size: tuple[int, int], device: torch.device) -> float:
    """Return the seconds of a training step per image of its batch."""
    batch = 256 if device.type == "cuda" else _BATCH
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = torch.rand(batch, 3, *size, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    task.train()
    for step in range(_STEPS + 1):
        if step == 1:
            started = time.monotonic()
        loss = task(images, labels)["loss"]
        loss.backward()
        float(loss.detach())
    return (time.monotonic() - started) / (_STEPS * batch)
