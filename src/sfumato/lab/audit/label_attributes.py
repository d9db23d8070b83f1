"""Attribute inference of label columns beside the class, such as glasses, age or identity.

An attacker's accuracy lies between what the class alone gives, which no obfuscator hides from the classifier, and what
the same attacker, trained as long, infers from the plain image. If it fails even there, the audit shows nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.image_attributes import Attribute, Targets, chance, train_heads
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FreshPairs, Pairs, Threat
from sfumato.lab.audit.result_store import cached
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import proportion_interval

THREATS = (Threat.WHITE_BOX, Threat.PAIRS)
KNOWN_PAIRS = 1_000
"""Under `Threat.PAIRS`; or half of the training images, where there are fewer than twice as many."""
_MOST_PASSES = 30
"""Over the same pairs; more would overfit."""
_LEARNING_RATE = 2e-3

Columns = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> values of training images (N,) and of test images (M,), int64 from 0 on."""


def infer_columns(
    setting: AttackSetting, columns: Columns, *, budget: AttackBudget, test_images: int
) -> list[Attribute]:
    """Train an attacker under each of `THREATS` and one on plain images, and try them on the first test images.

    Returns:
        One entry for each column and threat model, column by column.

    Raises:
        AuditError: not one value for each image.
    """
    train, test = setting.public, setting.test.subset(test_images)
    for name, both in columns.items():
        for column, images in zip(both, (setting.train, setting.test), strict=True):
            if len(column) != len(images):
                raise AuditError(f"{len(column)} values of {name!r} for {len(images)} images: need one each")
    known = {name: column[: len(train)] for name, (column, _) in columns.items()}
    truth = {name: column[: len(test)] for name, (_, column) in columns.items()}
    plain = _from_plain_images(train, test, known, truth, budget)
    correct: dict[Threat, dict[str, int]] = {}
    for threat in THREATS:
        held = min(KNOWN_PAIRS, max(len(train) // 2, 1)) if threat is Threat.PAIRS else None
        pairs = setting.knowledge(threat, pairs=held).pairs
        assert pairs is not None
        places = setting.order[:held] if held else torch.arange(len(train))
        theirs = {name: column[places] for name, column in known.items()}
        correct[threat] = attack(pairs, theirs, setting.observed(threat, len(test)), truth, budget)
    found = []
    for name in columns:
        by_class = chance(known[name], train.labels, truth[name], test.labels)
        majority = float((truth[name] == known[name].bincount().argmax()).double().mean())
        for threat in THREATS:
            low, high = proportion_interval(correct[threat][name], len(test))
            found.append(
                Attribute(
                    attribute=name,
                    accuracy=correct[threat][name] / len(test),
                    chance=by_class,
                    test_images=len(test),
                    low=low,
                    high=high,
                    threat=threat,
                    majority=majority,
                    plain=plain[name] / len(test),
                )
            )
    return found


def attack(pairs: Pairs, known: Targets, observed: Tensor, truth: Targets, budget: AttackBudget) -> dict[str, int]:
    """Train one small network with a head for each column, and try it.

    Args:
        pairs: to learn from.
        known: column -> (len(pairs),) int64.
        observed: (M, C, H', W') float32, the payload for the test images.
        truth: column -> (M,) int64.
        budget: of the attacker.

    Returns:
        Column -> how many of the M it inferred correctly.
    """
    values = {name: int(torch.cat([known[name], truth[name]]).max()) + 1 for name in known}
    budget = replace(budget, images=min(budget.images, _MOST_PASSES * len(pairs)))

    def batch(chosen: Tensor, source: torch.Generator) -> tuple[Tensor, Targets]:
        return pairs.batch(chosen, source)[1], {name: known[name][chosen] for name in known}

    guesses = train_heads(pairs, batch, values, budget, learning_rate=_LEARNING_RATE)(observed)
    return {name: int((guesses[name] == truth[name]).sum()) for name in values}


def _from_plain_images(
    train: ImageSet, test: ImageSet, known: Targets, truth: Targets, budget: AttackBudget
) -> dict[str, int]:
    """As `attack`, from the image itself: the same whatever is audited, so it is cached."""
    digest = hashlib.sha256()
    for values in (known, truth):
        for name, column in values.items():
            digest.update(name.encode() + column.numpy().tobytes())
    of = (train.sha256, test.sha256, len(train), len(test), budget.images, budget.seed, digest.hexdigest())

    def find() -> dict[str, int]:
        pairs = FreshPairs(train.images, lambda images: images)
        return attack(pairs, known, test.images.float() / 255, truth, budget)

    return cached("columns", of, dict[str, int], find)
