"""What an attacker infers beyond the class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.image_attributes import Attribute, chance, hue, infer
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Threat

BUDGET = AttackBudget(images=128 * 30, steps=1)


def shaded(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 3, 16, 16) uint8: one colour, brighter towards the upper left corner; labels that say nothing."""
    source = torch.Generator().manual_seed(seed)
    colour = torch.rand((count, 3, 1, 1), generator=source) * 200
    shade = torch.linspace(1.2, 0.6, 16)[:, None] * torch.linspace(1.1, 0.5, 16)
    return (colour * shade).byte(), torch.randint(3, (count,), generator=source)


def attack(payload, *, fixed: bool = False) -> dict[str, Attribute]:
    (known, classes), (originals, labels) = shaded(500, seed=0), shaded(300, seed=1)
    pairs = FixedPairs(known, payload(known.float() / 255)) if fixed else FreshPairs(known, payload)
    knowledge = Knowledge(Threat.PAIRS if fixed else Threat.WHITE_BOX, 16, 16, pairs)
    found = infer(knowledge, lambda x: payload(x.float() / 255), originals, labels, classes, budget=BUDGET, seed=0)
    return {one.attribute: one for one in found}


def test_everything_is_told_from_the_image_itself():
    found = attack(lambda x: x)
    assert list(found) == ["hue", "brightness", "mirrored", "rotation"]
    assert (found["mirrored"].chance, found["rotation"].chance) == (1 / 2, 1 / 4)
    for one in found.values():
        assert one.low > one.chance + 0.15, one
        assert one.low < one.accuracy < one.high or one.accuracy == 1
        assert one.test_images == 300


def test_nothing_is_told_from_a_constant():
    found = attack(lambda x: torch.zeros(len(x), 3, 8, 8))
    for one in found.values():
        assert one.low < one.chance + 0.05, one


def test_pairs_alone_tell_nothing_of_turning():
    found = attack(lambda x: x, fixed=True)
    assert list(found) == ["hue", "brightness"]
    assert found["brightness"].threat == "pairs"


def test_chance_is_the_best_guess_from_the_class():
    classes, labels = shaded(500, seed=0)[1], shaded(300, seed=1)[1]
    assert chance(classes, classes, labels, labels) == 1
    assert chance((torch.arange(500) % 10 == 0).long(), classes, labels * 0, labels) == 1
    assert chance(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]), torch.tensor([1]), torch.tensor([2])) == 1


def test_hue_of_plain_colours():
    colours = torch.tensor(
        [[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 255, 255], [0, 0, 255], [255, 0, 255], [90, 92, 91]],
        dtype=torch.uint8,
    )
    assert hue(colours[:, :, None, None].expand(-1, -1, 4, 4)).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_oblong_images_are_not_rotated():
    known, classes = shaded(60, seed=0)
    known = known[:, :, :12]
    knowledge = Knowledge(Threat.WHITE_BOX, 12, 16, FreshPairs(known, lambda x: x))
    found = infer(
        knowledge, lambda x: x / 255, known, classes, classes, budget=AttackBudget(images=128, steps=1), seed=0
    )
    assert [one.attribute for one in found] == ["hue", "brightness", "mirrored"]


def test_says_what_is_missing():
    known, classes = shaded(20, seed=0)
    with pytest.raises(AuditError, match="no such pairs"):
        infer(Knowledge(Threat.NO_PAIRS, 16, 16), lambda x: x, known, classes, classes, budget=BUDGET, seed=0)
    knowledge = Knowledge(Threat.WHITE_BOX, 16, 16, FreshPairs(known, lambda x: x))
    with pytest.raises(AuditError, match="19 classes for 20 images"):
        infer(knowledge, lambda x: x, known, classes, classes[1:], budget=BUDGET, seed=0)
