"""What a target needs, what is there already, and an estimate of the remaining time on this machine."""

from __future__ import annotations

from torch import nn

from reproduction.audits import known_audit
from reproduction.lab import Lab
from reproduction.plan import Item, Target, parts
from sfumato.lab.attacks.fit import BATCH
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.models import build_classifier
from sfumato.lab.runs.speed import Entry, Shape, Speed, full_epochs, taught_epochs
from sfumato.lab.training import ClassifierRecipe, ObfuscatorRecipe

CIFAR10_IMAGES = 50_000


def listing(lab: Lab, target: Target) -> list[Entry]:
    """List what a target needs, in the order in which it is made; train nothing.

    Raises:
        SfumatoError: a recipe, bundle or audit is damaged.
    """
    speed, entries = Speed(lab.device), []
    budget = BUDGETS[lab.plan.budget]
    for part in parts(lab.plan, target):
        for item in part.items:
            state = lab.state(item)
            if state.name == "done":
                entries.append(Entry(item.name, "done", None))
            else:
                stated = state.of(lab.recipe(item).training.epochs)
                entries.append(Entry(item.name, stated, seconds_left(lab, item, speed)))
        for item in part.audited:
            done = lab.state(item).name == "done" and known_audit(lab, item) is not None
            left = None if done else speed.audit_s(budget)
            entries.append(Entry(f"audit of {item.name}", "done" if done else "missing", left))
    if target in (Target.OPTIMUM, Target.ALL):
        pairs = sum(_snapshots(lab.recipe(item)) for item in lab.plan.obfuscators) + len(lab.plan.sweep)
        seconds = speed.decoder_s * max(BATCH, lab.plan.snapshots.images) * pairs
        entries.append(Entry(f"adaptive attackers on {pairs} pairs of networks", "those not known yet", seconds))
    return entries


def seconds_left(lab: Lab, item: Item, speed: Speed) -> float:
    """Estimate the remaining time of an item's training from steps measured on its own networks.

    Raises:
        SfumatoError: a recipe or bundle is damaged.
    """
    recipe = lab.recipe(item)
    images = recipe.data.train_images or CIFAR10_IMAGES
    other = item.classifier or item.teacher
    frozen, shape = None, Shape()
    if other is not None:
        frozen, classes = _network(lab, lab.plan.item(other))
        shape = Shape(classes=classes)
    done = lab.state(item).epochs
    left, taught = full_epochs(recipe.training, done), images * taught_epochs(recipe, done)
    return speed.training_s(recipe, round(images * left), taught=taught, classifier=frozen, shape=shape)


def _network(lab: Lab, item: Item) -> tuple[nn.Module, int]:
    """Return an item's classifier, with fresh weights if it is not trained yet, and how many classes it has."""
    if lab.state(item).name == "done":
        found = load_classifier(lab.path(item))
        return found.net, len(found.labels)
    recipe = lab.recipe(item)
    assert isinstance(recipe, ClassifierRecipe)
    classes = Shape().classes
    return build_classifier(recipe.architecture, classes), classes


def _snapshots(recipe: ClassifierRecipe | ObfuscatorRecipe) -> int:
    if not isinstance(recipe, ObfuscatorRecipe) or recipe.snapshots_every is None:
        return 1
    return -(-recipe.training.epochs // recipe.snapshots_every)
