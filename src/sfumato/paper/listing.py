"""What a target needs, what is there already, and roughly how long the rest takes on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from sfumato.audit.budget import BUDGETS
from sfumato.audit.fitting import BATCH
from sfumato.audit.speed import decoder_seconds, spoken
from sfumato.classifiers import load_classifier
from sfumato.nets import Deobfuscator, Normalize, Obfuscator, build_classifier, cost
from sfumato.paper.audits import known_audit
from sfumato.paper.lab import Lab
from sfumato.paper.plan import Item, Target, needed
from sfumato.training import ClassifierRecipe, ObfuscatorRecipe
from sfumato.training.tasks import ObfuscationTask

CIFAR10_PICTURES = 50_000
_STEPS = 2
_PASSES = 3
"""A training step costs about three forward passes."""


@dataclass(frozen=True)
class Entry:
    """A line of the list.

    Attributes:
        what: the item's name, or "audit of" it.
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


def listing(lab: Lab, target: Target) -> list[Entry]:
    """What a target needs, in the order in which it is made; nothing is trained.

    Raises:
        SfumatoError: a recipe, bundle or audit is damaged.
    """
    items, audited = needed(lab.plan, target)
    speed = _Speed(lab.device)
    entries = [_entry(lab, item, speed) for item in items]
    budget = BUDGETS[lab.plan.budget]
    pictures = budget.pictures + budget.identification_pictures + budget.attribute_pictures
    for item in audited:
        done = lab.state(item).name == "done" and known_audit(lab, item) is not None
        entries.append(
            Entry(
                f"audit of {item.name}",
                "done" if done else "missing",
                None if done else speed.decoder_s * pictures,
            )
        )
    if target in (Target.OPTIMUM, Target.ALL):
        shots = sum(_snapshots(lab.recipe(item)) for item in lab.plan.obfuscators) + len(lab.plan.sweep)
        seconds = speed.decoder_s * max(BATCH, lab.plan.later.pictures) * shots
        entries.append(Entry(f"later attackers on {shots} pairs of networks", "those not known yet", seconds))
    return entries


def _snapshots(recipe: ClassifierRecipe | ObfuscatorRecipe) -> int:
    if not isinstance(recipe, ObfuscatorRecipe) or recipe.snapshots_every is None:
        return 1
    return -(-recipe.training.epochs // recipe.snapshots_every)


def _entry(lab: Lab, item: Item, speed: _Speed) -> Entry:
    state = lab.state(item)
    if state.name == "done":
        return Entry(item.name, "done", None)
    recipe = lab.recipe(item)
    epochs = recipe.training.epochs
    words = f"half done: epoch {state.epochs} of {epochs}" if state.name == "half done" else "missing"
    pictures = recipe.data.train_pictures or CIFAR10_PICTURES
    macs = _macs(lab, item, recipe)
    return Entry(item.name, words, _PASSES * macs * pictures * (epochs - state.epochs) * speed.mac_s)


def _macs(lab: Lab, item: Item, recipe: ClassifierRecipe | ObfuscatorRecipe) -> int:
    if isinstance(recipe, ClassifierRecipe):
        return cost(build_classifier(recipe.architecture)).macs
    assert item.classifier is not None
    other = lab.plan.item(item.classifier)
    if lab.state(other).name == "done":
        classifier = cost(load_classifier(lab.path(other)).net).macs
    else:
        classifier = _macs(lab, other, lab.recipe(other))
    return 2 * cost(Obfuscator()).macs + classifier


class _Speed:
    """How fast this machine is, measured when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._decoder_s: float | None = None
        self._mac_s: float | None = None

    @property
    def decoder_s(self) -> float:
        """Seconds that an audit takes for each training picture of its decoders."""
        if self._decoder_s is None:
            self._decoder_s = decoder_seconds(self._device)
        return self._decoder_s

    @property
    def mac_s(self) -> float:
        """Seconds for a multiply-accumulate, measured on a training step of an obfuscator for ResNet20."""
        if self._mac_s is None:
            self._mac_s = _mac_seconds(self._device, 256 if self._device.type == "cuda" else 16)
        return self._mac_s


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
