"""Label columns beside the class, such as glasses, age or who somebody is: what an obfuscator hides of them.

Each is asked of the payload under several threat models, by an attacker who has the column for his own images. His
success stands between two ends: what the class alone tells, which nobody can hide who sends for an answer, and what the
same attacker, trained as long, tells from the plain image. If he cannot tell it even there, the audit shows nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import BATCH, Encoder, batched, train
from sfumato.lab.attacks.image_attributes import Attribute, Targets, chance
from sfumato.lab.attacks.protocol import Effort
from sfumato.lab.attacks.threat_models import FreshPairs, Pairs, Threat
from sfumato.lab.audit.result_store import remembered
from sfumato.lab.audit.setting import Scene
from sfumato.lab.evaluation.measures import proportion_interval

THREATS = (Threat.WHITE_BOX, Threat.PAIRS)
KNOWN_PAIRS = 1_000
"""Under `Threat.PAIRS`; or half of the training images, where there are fewer than twice as many."""
_MOST_PASSES = 30
"""Over the same pairs; more would learn them by heart."""
_LEARNING_RATE = 2e-3
_STATISTICS_PAIRS = 500

Columns = dict[str, tuple[Tensor, Tensor]]
"""Name -> values of training images (N,) and of test images (M,), int64 from 0 on."""


def ask(scene: Scene, columns: Columns, *, effort: Effort, test_images: int) -> list[Attribute]:
    """Trains an attacker under each of `THREATS` and one on plain images, and tries them on the test images.

    Args:
        scene: the obfuscator and the images.
        columns: what is asked for.
        effort: budget of each attacker.
        test_images: at most.

    Returns:
        One entry a column and threat model, column by column.

    Raises:
        AuditError: not one value for each image.
    """
    count = min(test_images, len(scene.test))
    known, truth = ({name: both[i] for name, both in columns.items()} for i in (0, 1))
    for values, images in ((known, len(scene.train)), (truth, len(scene.test))):
        for name, given in values.items():
            if len(given) != images:
                raise AuditError(f"{len(given)} values of {name!r} for {images} images: need one each")
    truth = {name: values[:count] for name, values in truth.items()}
    plain = _from_plain_images(scene, known, truth, effort)
    right: dict[Threat, dict[str, int]] = {}
    for threat in THREATS:
        pairs, places = _pairs(scene, threat)
        theirs = {name: values[places] for name, values in known.items()}
        right[threat] = attack(pairs, theirs, scene.observed(threat, count), truth, effort)
    return [
        _entry(name, threat, right[threat][name], plain[name], scene, known[name], truth[name])
        for name in columns
        for threat in THREATS
    ]


def attack(pairs: Pairs, known: Targets, observed: Tensor, truth: Targets, effort: Effort) -> dict[str, int]:
    """One small network with a head a column, from the payload.

    Args:
        pairs: to learn from.
        known: column -> (len(pairs),) int64.
        observed: (M, C, H', W') float32, the payload for the test images.
        truth: column -> (M,) int64.
        effort: budget.

    Returns:
        Column -> how many of the M it told right.
    """
    source = torch.Generator().manual_seed(effort.seed)
    values = {name: int(torch.cat([known[name], truth[name]]).max()) + 1 for name in known}
    _, some = pairs.batch(torch.arange(min(len(pairs), _STATISTICS_PAIRS)), source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(effort.seed)
        net = Encoder.fitting(some, sum(values.values())).to(effort.device)

    def heads(logits: Tensor) -> dict[str, Tensor]:
        return dict(zip(values, torch.split(logits, list(values.values()), dim=1), strict=True))

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(pairs), (BATCH,), generator=source)
            given = heads(net(pairs.batch(chosen, source)[1].to(effort.device)))
            yield torch.stack(
                [F.cross_entropy(given[name], known[name][chosen].to(effort.device)) for name in values]
            ).sum()

    effort = replace(effort, images=min(effort.images, _MOST_PASSES * len(pairs)))
    train(net, losses(), effort, learning_rate=_LEARNING_RATE)
    given = heads(batched(lambda x: net(x.to(effort.device)).cpu(), observed, flat=False))
    return {name: int((part.argmax(dim=1) == truth[name]).sum()) for name, part in given.items()}


def _from_plain_images(scene: Scene, known: Targets, truth: Targets, effort: Effort) -> dict[str, int]:
    """As `attack`, where the image itself travels: the same whatever is audited, so found once."""
    train_set, test = scene.train, scene.test
    count = len(next(iter(truth.values())))
    digest = hashlib.sha256()
    for values in (known, truth):
        for name, column in values.items():
            digest.update(name.encode() + column.numpy().tobytes())
    of = (train_set.sha256, test.sha256, len(train_set), count, effort.images, effort.seed, digest.hexdigest())

    def find() -> dict[str, int]:
        pairs = FreshPairs(train_set.images, lambda images: images)
        return attack(pairs, known, test.images[:count].float() / 255, truth, effort)

    found: dict[str, int] = remembered("columns", str(of), find)
    return found


def _pairs(scene: Scene, threat: Threat) -> tuple[Pairs, Tensor]:
    """What the attacker learns from, and which training images these are."""
    held = min(KNOWN_PAIRS, max(len(scene.train) // 2, 1)) if threat is Threat.PAIRS else None
    pairs = scene.knowledge(threat, pairs=held).pairs
    assert pairs is not None
    return pairs, scene.order[:held] if held else torch.arange(len(scene.train))


def _entry(name: str, threat: Threat, right: int, plain: int, scene: Scene, known: Tensor, truth: Tensor) -> Attribute:
    count = len(truth)
    low, high = proportion_interval(right, count)
    return Attribute(
        attribute=name,
        accuracy=right / count,
        chance=chance(known, scene.train.labels, truth, scene.test.labels[:count]),
        test_images=count,
        low=low,
        high=high,
        threat=threat,
        majority=float((truth == known.bincount().argmax()).double().mean()),
        plain=plain / count,
    )
