"""Attribute inference: what every image has beyond its class, such as colour, brightness and orientation.

One small network with a head for each attribute is trained on the payload, and compared with the best guess from the
class label alone. For label columns see `sfumato.lab.audit.label_attributes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.encoders import Encoder
from sfumato.lab.attacks.identification import BATCH, batched, train
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Pairs, Threat
from sfumato.lab.evaluation.measures import proportion_interval

HUES = 6
"""Bins of the mean colour's hue, one around each of red, yellow, green, cyan, blue and magenta."""
GREY = 0.02
"""A mean colour whose largest and smallest channel differ by less has no hue: a bin of its own, the seventh."""
LEVELS = 4
"""Bins of brightness, at the quartiles of the attacker's images."""

Targets = dict[str, Tensor]
"""Name of an attribute -> (N,) int64."""
Batch = Callable[[Tensor, torch.Generator], tuple[Tensor, Targets]]
"""Indices of pairs -> the payload (B, C, H', W') float32 and its attributes; -1 is not learned from."""


@dataclass(frozen=True)
class Attribute:
    """How well an attribute is inferred from the payload.

    Attributes:
        attribute: its name.
        accuracy: of the attacker, on test images.
        chance: accuracy of the most frequent value in each class of the training images; a half for mirrored, a
            quarter for rotation.
        test_images: how many were tried.
        low: of the 95 % interval of `accuracy`.
        high: likewise.
        threat: what the attacker knows.
        majority: of a label column, accuracy of its most frequent value, which needs no knowledge at all.
        plain: of a label column, accuracy of such attackers from plain images.
        attacker: of a label column, which of several was chosen.
        held_out: lower end of the 95 % interval of its accuracy on own images held out, by which it was chosen.
    """

    attribute: str
    accuracy: float
    chance: float
    test_images: int
    low: float
    high: float
    threat: Threat = Threat.WHITE_BOX
    majority: float | None = None
    plain: float | None = None
    attacker: str | None = None
    held_out: float | None = None


def infer(
    knowledge: Knowledge,
    observe_test: Callable[[Tensor], Tensor],
    originals_test: Tensor,
    labels_test: Tensor,
    train_labels: Tensor,
    *,
    budget: AttackBudget,
    seed: int,
) -> list[Attribute]:
    """Train the attacker on its own pairs and try it on the test images.

    "hue" and "brightness" are always tried; "mirrored" and "rotation" (of square images) only where the attacker
    can obfuscate images that it has turned.

    Args:
        knowledge: its pairs are `FixedPairs`, or `FreshPairs` of an attacker that can obfuscate.
        observe_test: (N, 3, H, W) uint8 -> (N, C, H', W') float32, the payload for test images, turned or not.
        originals_test: (M, 3, H, W) uint8.
        labels_test: (M,) int64.
        train_labels: (N,) int64, classes of the pairs' images.
        budget: of the attacker.
        seed: of how test images are turned.

    Returns:
        One entry for each attribute.

    Raises:
        AuditError: no pairs, or lengths that do not fit.
    """
    pairs = knowledge.pairs
    if not isinstance(pairs, FixedPairs | FreshPairs):
        raise AuditError("attributes are learned from images and the payload for them; there are no such pairs")
    for count, labels in ((len(pairs), train_labels), (len(originals_test), labels_test)):
        if len(labels) != count:
            raise AuditError(f"{len(labels)} classes for {count} images: need one each")
    levels = _luma(pairs.images).quantile(torch.arange(1, LEVELS) / LEVELS)
    known, truth = _visible(pairs.images, levels), _visible(originals_test, levels)
    values = {name: int(torch.cat([known[name], truth[name]]).max()) + 1 for name in known}
    turns = {"mirrored": 2, "rotation": 4} if originals_test.shape[-1] == originals_test.shape[-2] else {"mirrored": 2}
    turns = turns if isinstance(pairs, FreshPairs) else {}
    values |= turns

    def batch(chosen: Tensor, source: torch.Generator) -> tuple[Tensor, Targets]:
        return _batch(pairs, chosen, known, values, source)

    (guess,) = train_heads(pairs, batch, values, budget)
    guesses, source = guess(batched(observe_test, originals_test, flat=False)), torch.Generator().manual_seed(seed)
    by_chance = {name: chance(known[name], train_labels, truth[name], labels_test) for name in known}
    for name, count in turns.items():
        turned, truth[name] = _turned(originals_test, name, source)
        guesses[name] = guess(batched(observe_test, turned, flat=False))[name]
        by_chance[name] = 1 / count
    found = []
    for name, baseline in by_chance.items():
        hits, tried = int((guesses[name] == truth[name]).sum()), len(originals_test)
        interval = proportion_interval(hits, tried)
        found.append(Attribute(name, hits / tried, baseline, tried, *interval, knowledge.threat))
    return found


def hue(images: Tensor) -> Tensor:
    """Return which hue the mean colour is nearest to: (N, 3, H, W) uint8 -> (N,) int64 in [0, HUES]; `HUES` for grey.

    Source: the angle in the plane across the grey axis, Preucil 1953.
    """
    colour = images.float().mean(dim=(2, 3)) / 255
    red, green, blue = colour.unbind(1)
    angle = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
    nearest = (angle / (2 * math.pi) * HUES).round().long() % HUES
    return torch.where(colour.amax(dim=1) - colour.amin(dim=1) < GREY, HUES, nearest)


def _luma(images: Tensor) -> Tensor:
    """Mean brightness, (N, 3, H, W) uint8 -> (N,) in [0, 255]; weights of ITU-R BT.601."""
    return images.float().mean(dim=(2, 3)) @ torch.tensor([0.299, 0.587, 0.114])


def _visible(images: Tensor, levels: Tensor) -> Targets:
    return {"hue": hue(images), "brightness": torch.bucketize(_luma(images), levels)}


def _turned(images: Tensor, name: str, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image turned at random, and how: "mirrored" 0 or 1, "rotation" 0 to 3 quarters."""
    how = torch.randint(2 if name == "mirrored" else 4, (len(images),), generator=source)
    turned = images.clone()
    for value in range(1, 4):
        chosen = how == value
        turned[chosen] = images[chosen].flip(3) if name == "mirrored" else images[chosen].rot90(value, (2, 3))
    return turned, how


def train_heads(
    pairs: Pairs,
    batch: Batch,
    values: Mapping[str, int],
    budget: AttackBudget,
    *,
    encoders: Sequence[type[Encoder]] = (Encoder,),
    learning_rate: float = 1e-3,
) -> list[Callable[[Tensor], Targets]]:
    """Train small networks on the same payloads, each with a head for each attribute and its number of values.

    Returns:
        For each network, the payload (N, C, H', W') float32 -> each attribute's guesses (N,) int64.
    """
    source = torch.Generator().manual_seed(budget.seed)
    _, some = pairs.examples(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        nets = nn.ModuleList(encoder(some, sum(values.values())) for encoder in encoders).to(budget.device)

    def heads(net: nn.Module, observed: Tensor) -> dict[str, Tensor]:
        parts = net(observed).split(list(values.values()), dim=1)
        return dict(zip(values, parts, strict=True))

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(pairs), (BATCH,), generator=source)
            observed, targets = batch(chosen, source)
            observed, targets = observed.to(budget.device), {k: v.to(budget.device) for k, v in targets.items()}
            logits = [heads(net, observed) for net in nets]
            yield torch.stack(
                [F.cross_entropy(one[name], targets[name], ignore_index=-1) for one in logits for name in values]
            ).sum()

    train(nets, losses(), budget, learning_rate=learning_rate)

    @torch.no_grad()
    def guess(net: nn.Module, observed: Tensor) -> Targets:
        parts = [heads(net, part.to(budget.device)) for part in torch.split(observed, 250)]
        return {name: torch.cat([part[name].argmax(dim=1) for part in parts]).cpu() for name in values}

    return [partial(guess, net) for net in nets]


@torch.no_grad()
def _batch(
    pairs: FixedPairs | FreshPairs, chosen: Tensor, known: Targets, values: Mapping[str, int], source: torch.Generator
) -> tuple[Tensor, Targets]:
    """The payload and its targets; each way of turning gets an equal part of the batch, the others' targets are -1."""
    targets = {name: known[name][chosen] for name in known}
    if isinstance(pairs, FixedPairs):
        return pairs.observed[chosen], targets
    images = pairs.images[chosen].clone()
    turns = [name for name in values if name not in known]
    for name, part in zip(turns, torch.arange(len(chosen)).chunk(len(turns)), strict=True):
        targets[name] = torch.full((len(chosen),), -1)
        images[part], targets[name][part] = _turned(images[part], name, source)
    return pairs.payload(images.float() / 255), targets


def chance(known: Tensor, train_labels: Tensor, truth: Tensor, labels_test: Tensor) -> float:
    """Accuracy of the most frequent value in the image's class, or of all where the class was never seen.

    All are int64: the attribute (N,) and class (N,) of training images, then those (M,) of test images.
    """
    counts = torch.zeros(int(max(train_labels.max(), labels_test.max())) + 1, int(known.max()) + 1)
    counts.index_put_((train_labels, known), torch.ones(len(known)), accumulate=True)
    counts[counts.sum(dim=1) == 0] = counts.sum(dim=0)
    return float((counts.argmax(dim=1)[labels_test] == truth).double().mean())
