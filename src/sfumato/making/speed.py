"""How long trainings and audits take on this machine, roughly: measured on a few steps, when it is asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from sfumato.audit.budget import Budget
from sfumato.audit.speed import decoder_seconds, spoken
from sfumato.nets import Deobfuscator, Normalize, Obfuscator, build_classifier, cost, sketcher_of
from sfumato.training.recipe import AnyRecipe, ClassifierRecipe, SketchRecipe
from sfumato.training.tasks import ObfuscationTask

_STEPS = 2
_PASSES = 3
"""A training step costs about three forward passes."""


@dataclass(frozen=True)
class Entry:
    """A line of a list of what would be made.

    Attributes:
        what: the name of a training, or "audit of" it.
        state: "done", "half done: epoch 3 of 20" or "missing".
        seconds: that the rest takes, roughly; None where nothing is left.
    """

    what: str
    state: str
    seconds: float | None

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.what}: {self.state}" + ("" if self.seconds is None else f", about {spoken(self.seconds)}")


def device_macs(recipe: AnyRecipe, *, height: int = 32, width: int = 32, classes: int = 10) -> int:
    """Multiply-accumulates of the network that a recipe trains, for one picture.

    Args:
        recipe: of a classifier or an obfuscator.
        height: rows of the pictures.
        width: columns of the pictures.
        classes: of the classifier.
    """
    net: nn.Module
    if isinstance(recipe, ClassifierRecipe):
        net = build_classifier(recipe.architecture, classes)
    elif isinstance(recipe, SketchRecipe):
        net = sketcher_of(recipe.model_dump(mode="json"), height, width, classes=classes)
    else:
        net = Obfuscator()
    return cost(net, height=height, width=width).macs


def training_macs(recipe: AnyRecipe, classifier: int = 0, **size: int) -> int:
    """Multiply-accumulates of one picture's pass through all that a recipe trains, and trains with.

    Args:
        recipe: of a classifier or an obfuscator.
        classifier: those of the frozen classifier that an obfuscator is for.
        **size: as in `device_macs`.
    """
    own = device_macs(recipe, **size)
    if isinstance(recipe, ClassifierRecipe):
        return own
    # The paper's obfuscator has a deobfuscator of its own cost beside it; a sketch asks the classifier twice.
    return own + 2 * classifier if isinstance(recipe, SketchRecipe) else 2 * own + classifier


class Speed:
    """How fast this machine is, measured when it is asked for.

    Args:
        device: that trains and attacks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def training_s(self, macs: int, pictures: int, epochs: int) -> float:
        """Seconds for a training.

        Args:
            macs: see `training_macs`.
            pictures: of one epoch.
            epochs: that are left.
        """
        return _PASSES * macs * pictures * epochs * self._mac_s

    def audit_s(self, budget: Budget) -> float:
        """Seconds for an audit."""
        return self.decoder_s * (budget.pictures + budget.identification_pictures + budget.attribute_pictures)

    @cached_property
    def decoder_s(self) -> float:
        """Seconds that an audit takes for each training picture of its decoders."""
        return decoder_seconds(self._device)

    @cached_property
    def _mac_s(self) -> float:
        """Seconds for a multiply-accumulate, measured on a training step of an obfuscator for ResNet20."""
        return _mac_seconds(self._device, 256 if self._device.type == "cuda" else 16)


def _mac_seconds(device: torch.device, batch: int) -> float:
    classifier = build_classifier("resnet20")
    task = ObfuscationTask(
        Obfuscator(), Deobfuscator(), classifier, Normalize((0.5,) * 3, (0.25,) * 3), privacy_weight=1
    )
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = torch.rand(batch, 3, 32, 32, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    for step in range(_STEPS + 1):
        if step == 1:
            started = time.monotonic()
        loss = task(images, labels)["loss"]
        loss.backward()
        float(loss.detach())
    macs = _PASSES * (2 * cost(Obfuscator()).macs + cost(classifier).macs) * batch
    return (time.monotonic() - started) / (_STEPS * macs)
