"""What a target needs, what is there already, and roughly how long the rest takes on this machine."""

from __future__ import annotations

from sfumato.audit.budget import BUDGETS
from sfumato.audit.fitting import BATCH
from sfumato.classifiers import load_classifier
from sfumato.making.speed import Entry, Speed, training_macs
from sfumato.nets import cost
from sfumato.paper.audits import known_audit
from sfumato.paper.lab import Lab
from sfumato.paper.plan import Item, Target, needed
from sfumato.training import ClassifierRecipe, ObfuscatorRecipe

CIFAR10_PICTURES = 50_000


def listing(lab: Lab, target: Target) -> list[Entry]:
    """What a target needs, in the order in which it is made; nothing is trained.

    Raises:
        SfumatoError: a recipe, bundle or audit is damaged.
    """
    items, audited = needed(lab.plan, target)
    speed = Speed(lab.device)
    entries = [_entry(lab, item, speed) for item in items]
    budget = BUDGETS[lab.plan.budget]
    for item in audited:
        done = lab.state(item).name == "done" and known_audit(lab, item) is not None
        entries.append(
            Entry(
                f"audit of {item.name}",
                "done" if done else "missing",
                None if done else speed.audit_s(budget),
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


def _entry(lab: Lab, item: Item, speed: Speed) -> Entry:
    state = lab.state(item)
    if state.name == "done":
        return Entry(item.name, "done", None)
    recipe = lab.recipe(item)
    epochs = recipe.training.epochs
    pictures = recipe.data.train_pictures or CIFAR10_PICTURES
    seconds = speed.training_s(_macs(lab, item, recipe), pictures, epochs - state.epochs)
    return Entry(item.name, state.of(epochs), seconds)


def _macs(lab: Lab, item: Item, recipe: ClassifierRecipe | ObfuscatorRecipe) -> int:
    if item.classifier is None:
        return training_macs(recipe)
    other = lab.plan.item(item.classifier)
    if lab.state(other).name == "done":
        classifier = cost(load_classifier(lab.path(other)).net).macs
    else:
        classifier = _macs(lab, other, lab.recipe(other))
    return training_macs(recipe, classifier)
