"""Re-identification among payloads and images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import (
    ANOTHER_VIEW,
    Identification,
    another_view,
    identify,
    identify_reconstructed,
)
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Threat

TINY = AttackBudget(images=256, steps=1)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 3, 8, 8) uint8 and labels of two classes."""
    noise = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return noise, torch.arange(count) % 2


def scaled(x: Tensor) -> Tensor:
    return 2 * x - 1


def attack(observed: Tensor, originals: Tensor, labels: Tensor, **options) -> dict[tuple[str, str], Identification]:
    known, _ = images(200, seed=7)
    payload = options.pop("payload", None)
    pairs = FreshPairs(known, payload) if payload else None
    knowledge = Knowledge(Threat.WHITE_BOX if payload else Threat.NO_PAIRS, 8, 8, pairs)
    options = {"reconstruct": None, "observe": None, "budget": TINY, "seed": 0, "candidates": (10,), **options}
    found = identify(knowledge, observed, originals, labels, **options)
    assert len({(f.measure, f.attacker, f.candidates) for f in found}) == len(found)
    return {(f.measure, f.attacker): f for f in found}


def test_a_reconstructed_image_is_known_again():
    originals, labels = images(60, seed=0)
    exact = attack(originals.float() / 255, originals, labels, reconstruct=lambda x: x)
    (found,) = exact.values()
    assert (found.measure, found.top1, found.chance, found.queries) == ("retrieval", 1.0, 0.1, 60)
    assert 0.9 < found.low < 1
    assert found.high == pytest.approx(1)


def test_reobfuscation_finds_the_original_of_any_deterministic_map():
    originals, labels = images(60, seed=0)
    crumbs = torch.randn(192, 2, generator=torch.Generator().manual_seed(0))

    def hashing(x: Tensor) -> Tensor:
        return (x.flatten(1) @ crumbs).sin()[:, :, None, None]

    found = attack(hashing(originals.float() / 255), originals, labels, payload=hashing)
    assert found["retrieval", "obfuscating the candidates"].top1 == 1
    assert found["retrieval", "contrastive embedding"].top1 < 0.5


def test_random_messages_stay_at_chance():
    originals, labels = images(400, seed=0)
    source = torch.Generator().manual_seed(3)

    def random(x: Tensor) -> Tensor:
        return torch.randn((len(x), 3, 8, 8), generator=source)

    found = attack(
        random(originals), originals, labels, payload=random, reconstruct=random, observe=random, queries=300
    )
    assert len(found) == 7
    for one in found.values():
        assert one.top1 < 0.18, one
        assert one.queries == 300


def test_constant_messages_tie_at_chance():
    originals, labels = images(60, seed=0)

    def constant(x: Tensor) -> Tensor:
        return torch.full((len(x), 3, 8, 8), 0.5)

    found = attack(
        constant(originals), originals, labels, payload=constant, reconstruct=constant, observe=constant, queries=40
    )
    for key in (
        ("retrieval", "obfuscating the candidates"),
        ("retrieval", "contrastive embedding"),
        ("linkage", "distance, same image again"),
        ("linkage", "contrastive embedding, another view"),
    ):
        assert found[key].top1 <= 0.3
    assert found["retrieval", "obfuscating the candidates"].top1 == pytest.approx(0.1)


def test_messages_of_one_image_are_linked():
    originals, labels = images(60, seed=0)
    found = attack(
        scaled(originals.float() / 255), originals, labels, observe=lambda x: scaled(x.float() / 255), candidates=(10,)
    )
    assert found["linkage", "distance, same image again"].top1 == 1
    assert found["linkage", "distance, another view"].top1 < 1  # white noise, shifted: distances say little


def linked(observe) -> dict[str, float]:
    """Linkage of two views by each attacker, among 10; the embeddings learn from the same payloads."""
    originals, labels = images(60, seed=0)
    found = attack(
        observe(originals), originals, labels, payload=lambda x: observe(x), reconstruct=lambda x: x, observe=observe,
        budget=AttackBudget(images=128 * 4, steps=1),
    )  # fmt: skip
    return {who: one.top1 for (measure, who), one in found.items() if measure == "linkage" and ANOTHER_VIEW in who}


def test_linkage_is_1_for_views_that_are_the_same_and_chance_for_noise(monkeypatch):
    monkeypatch.setattr("sfumato.lab.attacks.identification.another_view", lambda images, generator: images)
    same = linked(lambda x: x.float())
    assert len(same) == 3 and set(same.values()) == {1.0}
    source = torch.Generator().manual_seed(5)
    assert max(linked(lambda x: torch.randn(x.shape, generator=source)).values()) < 0.25


def test_a_learned_embedding_links_what_distances_do_not():
    source = torch.Generator().manual_seed(0)
    mix = torch.rand((3, 3), generator=source)

    def toned(count: int) -> Tensor:
        return (torch.rand((count, 3, 1, 1), generator=source) * 255).byte().expand(-1, -1, 8, 8)

    def drowned(x: Tensor) -> Tensor:
        """The mean colour beside four times as many numbers of noise."""
        colour = (x.mean(dim=(2, 3)) @ mix)[:, :, None, None].expand(-1, -1, 8, 8)
        return torch.cat([colour, torch.randn((len(x), 12, 1, 1), generator=source).expand(-1, -1, 8, 8)], dim=1)

    originals, labels = toned(100), torch.zeros(100, dtype=torch.int64)
    found = identify(
        Knowledge(Threat.WHITE_BOX, 8, 8, FreshPairs(toned(500), drowned)),
        drowned(originals.float() / 255),
        originals,
        labels,
        reconstruct=None,
        budget=AttackBudget(images=5_000, steps=1),
        observe=lambda x: drowned(x.float() / 255),
        seed=0,
        candidates=(10,),
    )
    top1 = {(f.measure, f.attacker): f.top1 for f in found}
    assert top1["retrieval", "contrastive embedding"] > 0.3
    assert top1["linkage", "contrastive embedding, another view"] > top1["linkage", "distance, another view"] + 0.1


def test_pairs_alone_allow_no_reobfuscation():
    known, _ = images(100, seed=7)
    originals, labels = images(30, seed=0)
    knowledge = Knowledge(Threat.PAIRS, 8, 8, FixedPairs(known, known.float() / 255))
    found = identify(
        knowledge, originals.float() / 255, originals, labels, reconstruct=None, budget=TINY, observe=None, seed=0
    )
    assert {(f.attacker, f.candidates) for f in found} == {("contrastive embedding", 10), ("contrastive embedding", 15)}


def test_small_classes_give_fewer_candidates_and_say_so():
    originals, _ = images(13, seed=0)
    labels = torch.tensor([0] * 6 + [1] * 6 + [2])
    knowledge = Knowledge(Threat.NO_PAIRS, 8, 8)
    found = identify(
        knowledge,
        originals.float() / 255,
        originals,
        labels,
        reconstruct=lambda x: x,
        budget=TINY,
        observe=None,
        seed=0,
    )
    assert [(f.candidates, f.chance, f.queries) for f in found] == [(6, 1 / 6, 12)]


def in_gallery(
    observed: Tensor, originals: Tensor, labels: Tensor, **options
) -> dict[tuple[str, int, str], Identification]:
    knowledge = Knowledge(Threat.NO_PAIRS, 8, 8)
    options = {"reconstruct": lambda x: x, "observe": None, "budget": TINY, "seed": 0, "candidates": (10,), **options}
    found = identify(knowledge, observed, originals, labels, **options)
    return {(f.attacker, f.candidates, f.classes): f for f in found}


def test_in_a_gallery_of_all_classes_the_nearest_is_found_as_by_numpy():
    originals, labels = images(90, seed=0)
    noisy = (
        originals.float() / 255 + 0.9 * torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    found = in_gallery(noisy[:40], originals, labels, galleries=(50, 1_000))
    distance = "distance of reconstructed images"
    assert set(found) == {(distance, 10, "one"), (distance, 50, "all"), (distance, 90, "all")}
    row = found[distance, 90, "all"]
    gaps = np.square(noisy[:40].numpy()[:, None] - originals.numpy()[None] / 255.0).sum(axis=(2, 3, 4))
    assert row.top1 == pytest.approx(float((gaps.argmin(axis=1) == np.arange(40)).mean())) and 0.1 < row.top1 < 1
    assert row.chance == pytest.approx(1 / 45), "the label alone leaves 45 of the 90"
    assert row.queries == 40 and row.low < row.top1 < row.high
    interval = binomtest(round(row.top1 * 40), 40).proportion_ci(method="wilson")
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    smaller = found[distance, 50, "all"]
    assert smaller.top1 >= row.top1 and 1 / 30 < smaller.chance < 1 / 20
    assert found == in_gallery(noisy[:40], originals, labels, galleries=(50, 1_000)), "the same from the same seed"


def test_what_gives_the_label_alone_stays_at_a_gallerys_chance():
    originals, labels = images(400, seed=0)
    shown = (labels[:, None, None, None] * 0.2 + 0.4).expand(-1, 3, 8, 8).float()
    told = in_gallery(shown, originals, labels, galleries=(100,), embed=lambda x: one_hot(x, originals, labels))
    (row,) = [one for (attacker, _, classes), one in told.items() if attacker[0] == "f" and classes == "all"]
    assert row.candidates == 400, "at least all queries"
    assert row.top1 == pytest.approx(row.chance) == pytest.approx(1 / 200)


def one_hot(x: Tensor, originals: Tensor, labels: Tensor) -> Tensor:
    """The class alone: of the flat images by their shade, of originals by looking them up."""
    flat = x.flatten(1).std(dim=1) < 1e-3
    known = {image.numpy().tobytes(): int(label) for image, label in zip(originals, labels, strict=True)}
    classes = [
        int(image.mean() > 0.5) if shade else known[(image * 255).round().byte().numpy().tobytes()]
        for image, shade in zip(x, flat.tolist(), strict=True)
    ]
    return torch.nn.functional.one_hot(torch.tensor(classes), 2).float()


def test_equal_candidates_of_a_gallery_share_the_hit():
    originals = torch.full((60, 3, 8, 8), 128, dtype=torch.uint8)
    found = in_gallery(originals.float() / 255, originals, torch.arange(60) % 2, galleries=(60,))
    assert found["distance of reconstructed images", 60, "all"].top1 == pytest.approx(1 / 60)


def test_refuses_what_cannot_be_measured():
    originals, _ = images(4, seed=0)
    knowledge = Knowledge(Threat.NO_PAIRS, 8, 8)
    with pytest.raises(AuditError, match="share a class"):
        attack(originals.float(), originals, torch.arange(4))
    with pytest.raises(AuditError, match="one each"):
        identify(
            knowledge,
            originals.float(),
            originals,
            torch.zeros(3, dtype=torch.int64),
            reconstruct=None,
            budget=TINY,
            observe=None,
            seed=0,
        )


def test_another_view_moves_and_lights_but_keeps_the_image():
    ramp = torch.arange(16, dtype=torch.uint8).mul(10)[None, None, None].repeat(200, 3, 16, 1)
    views = another_view(ramp, torch.Generator().manual_seed(0))
    assert views.shape == ramp.shape and views.dtype == torch.uint8
    rising = (views[:, 0, 0].float().diff(dim=1) >= 0).all(dim=1)
    falling = (views[:, 0, 0].float().diff(dim=1) <= 0).all(dim=1)
    assert (rising ^ falling).all()
    assert 0.3 < rising.float().mean() < 0.7
    light = views[:, 0, 0, 8].float()
    assert 40 <= light.min() < 50 and 100 < light.max() <= 120


def test_what_a_slow_attacker_reconstructed_is_compared_with_all_candidates():
    originals, labels = images(400, seed=0)
    about = {"attacker": "posterior sampler", "threat": Threat.WHITE_BOX, "seed": 0, "candidates": (10, 100)}
    exact = originals[:60].float() / 255
    (found,) = identify_reconstructed(exact, originals, labels, **about)
    assert (found.attacker, found.measure) == ("distance of images by the posterior sampler", "retrieval")
    assert (found.candidates, found.top1, found.queries) == (10, 1.0, 60), "of 100, chance would be right too seldom"
    (wrong,) = identify_reconstructed(exact.flip(0), originals, labels, **about)
    assert wrong.low < 0.2
    assert len(identify_reconstructed(originals.float() / 255, originals, labels, **about, queries=500)) == 1
    assert [row.candidates for row in identify_reconstructed(
        originals.float() / 255, originals, labels, **about | {"candidates": (10, 80)})] == [10, 80]  # fmt: skip
