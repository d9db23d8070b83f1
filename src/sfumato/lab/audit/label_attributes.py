"""Attribute inference of label columns beside the class, such as glasses, age or identity.

Each column is inferred from the payload under several threat models, by an attacker that has it for its own images. Its
accuracy lies between two ends: what the class alone gives, which no obfuscator hides from the classifier, and what the
same attacker, trained as long, infers from the plain image. If it fails even there, the audit shows nothing.
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
    """Train an attacker under each of `THREATS` and one on plain images, and try them on the test images.

    Args:
        setting: the obfuscator and the images.
        columns: what is inferred.
        budget: of each attacker.
        test_images: at most.

    Returns:
        One entry for each column and threat model, column by column.

    Raises:
        AuditError: not one value for each image.
    """
    count = min(test_images, len(setting.test))
    known, truth = ({name: both[i] for name, both in columns.items()} for i in (0, 1))
    for values, images in ((known, len(setting.train)), (truth, len(setting.test))):
        for name, column in values.items():
            if len(column) != images:
                raise AuditError(f"{len(column)} values of {name!r} for {images} images: need one each")
    truth = {name: values[:count] for name, values in truth.items()}
    plain = _from_plain_images(setting, known, truth, budget)
    correct: dict[Threat, dict[str, int]] = {}
    for threat in THREATS:
        pairs, places = _pairs(setting, threat)
        theirs = {name: values[places] for name, values in known.items()}
        correct[threat] = attack(pairs, theirs, setting.observed(threat, count), truth, budget)
    return [
        _attribute(name, threat, correct[threat][name], plain[name], setting, known[name], truth[name])
        for name in columns
        for threat in THREATS
    ]


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


def _from_plain_images(setting: AttackSetting, known: Targets, truth: Targets, budget: AttackBudget) -> dict[str, int]:
    """As `attack`, from the image itself: the same whatever is audited, so it is cached."""
    train_set, test = setting.train, setting.test
    count = len(next(iter(truth.values())))
    digest = hashlib.sha256()
    for values in (known, truth):
        for name, column in values.items():
            digest.update(name.encode() + column.numpy().tobytes())
    of = (train_set.sha256, test.sha256, len(train_set), count, budget.images, budget.seed, digest.hexdigest())

    def find() -> dict[str, int]:
        pairs = FreshPairs(train_set.images, lambda images: images)
        return attack(pairs, known, test.images[:count].float() / 255, truth, budget)

    return cached("columns", str(of), dict[str, int], find)


def _pairs(setting: AttackSetting, threat: Threat) -> tuple[Pairs, Tensor]:
    """What the attacker learns from, and which training images these are."""
    held = min(KNOWN_PAIRS, max(len(setting.train) // 2, 1)) if threat is Threat.PAIRS else None
    pairs = setting.knowledge(threat, pairs=held).pairs
    assert pairs is not None
    return pairs, setting.order[:held] if held else torch.arange(len(setting.train))


def _attribute(
    name: str, threat: Threat, correct: int, plain: int, setting: AttackSetting, known: Tensor, truth: Tensor
) -> Attribute:
    count = len(truth)
    low, high = proportion_interval(correct, count)
    return Attribute(
        attribute=name,
        accuracy=correct / count,
        chance=chance(known, setting.train.labels, truth, setting.test.labels[:count]),
        test_images=count,
        low=low,
        high=high,
        threat=threat,
        majority=float((truth == known.bincount().argmax()).double().mean()),
        plain=plain / count,
    )
