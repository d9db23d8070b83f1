"""Exact statements about codes, against enumeration, against attackers, and against numpy and scipy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from scenes import images, target
from sfumato.artifacts.gate import Gate
from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import another_view, identify
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.target import LocalClassifier
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat
from sfumato.lab.audit.certificate import certify_code
from sfumato.lab.audit.codes import best_guesses, best_top1, code_facts, entropy_bits, silence, transmissions
from sfumato.lab.audit.setting import AttackSetting


class Shades(nn.Module):
    """A code of two bits: which quarter of the brightness; the fourth is never reached where `most` is 3."""

    code_bits = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shade = (x.mean(dim=(1, 2, 3)) * 12 - 4).floor().clamp(0, 3)
        return (shade / 4)[:, None, None, None].expand_as(x)


@pytest.mark.parametrize("candidates", [1, 2, 3, 5, 7])
def test_the_best_guess_is_the_mean_over_all_galleries(candidates):
    words = np.array([0, 0, 0, 1, 1, 2, 4])  # no image has word 3
    galleries = itertools.combinations(words, candidates)
    exact = np.mean([len(set(gallery)) / candidates for gallery in galleries])
    assert best_top1(torch.from_numpy(words).bincount(), candidates) == pytest.approx(exact, rel=1e-12)


def test_among_all_images_it_is_different_codes_over_images():
    words = torch.randint(0, 160, (10_000,), generator=torch.Generator().manual_seed(0))
    assert best_top1(words.bincount(), 10_000) == pytest.approx(len(set(words.tolist())) / 10_000, rel=1e-12)
    with pytest.raises(AuditError, match="of 10000 images"):
        best_top1(words.bincount(), 10_001)


def test_no_attacker_does_better_and_the_one_that_obfuscates_the_candidates_does_as_well():
    shown = images(400, seed=1)
    module = Shades()
    payload = target(module).payload
    found = identify(
        Knowledge(Threat.WHITE_BOX, 16, 16, FreshPairs(images(100).images, payload)),
        payload(shown.images.float() / 255),
        shown.images,
        shown.labels,
        reconstruct=None,
        budget=AttackBudget(images=256, steps=1),
        observe=None,
        seed=0,
        candidates=(10, 100),
        queries=400,
    )
    facts = code_facts(AttackSetting(target(module), images(100), shown), 2, views_of=50)
    best = {row.candidates: row.top1 for row in facts.best if row.classes == "one"}
    again = {row.candidates: row for row in found if row.attacker == "obfuscating the candidates"}
    assert sorted(best) == sorted(again) == [10, 100]
    for candidates, row in again.items():
        assert row.low < best[candidates] < row.high
        assert row.top1 == pytest.approx(best[candidates], rel=0.15)
    assert all(row.low < best[row.candidates] for row in found)


def test_best_guesses_of_one_class_are_weighted_by_images():
    words = torch.tensor([0, 1, 2, 3, 0, 0])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    rows = {(row.classes, row.candidates): row.top1 for row in best_guesses(words, labels)}
    assert rows == {("all", 6): pytest.approx(4 / 6), ("one", 4): pytest.approx(1.0)}
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    rows = {(row.classes, row.candidates): row.top1 for row in best_guesses(words, labels)}
    assert rows["one", 3] == pytest.approx((3 * 1 + 3 * 2 / 3) / 6)
    with pytest.raises(AuditError, match="need one of each"):
        best_guesses(words, labels[:3])
    with pytest.raises(AuditError, match="need one of each"):
        best_guesses(words[:0], labels[:0])


def test_entropy_as_scipy_computes_it():
    counts = torch.tensor([5, 0, 1, 10])
    assert entropy_bits(counts) == pytest.approx(entropy(counts.numpy(), base=2))
    assert entropy_bits(torch.tensor([7])) == 0 and math.copysign(1, entropy_bits(torch.tensor([7]))) == 1


def test_k_transmissions_are_the_different_sequences():
    rng = np.random.default_rng(0)
    views = rng.integers(0, 3, (5, 40))
    views[0] = 1
    rows = transmissions([torch.from_numpy(view) for view in views], values=3)
    assert [row.count for row in rows] == [1, 2, 4]
    for row in rows:
        together = {tuple(column) for column in views[: row.count].T}
        assert (row.observed, row.images, row.top1) == (len(together), 40, len(together) / 40)
        assert row.bits == pytest.approx(row.count * math.log2(3)) and row.observed <= 2**row.bits + 1e-9
    again = transmissions([torch.from_numpy(views[1])] * 4, values=3)
    assert {row.observed for row in again} == {len(set(views[1].tolist()))}, "the identical image tells no more"
    with pytest.raises(AuditError, match="the same images"):
        transmissions([torch.zeros(3), torch.zeros(4)], values=3)


def test_what_silence_tells_by_hand():
    words = torch.tensor([0, 1, 2, 2, 3, 3, 3, 3])
    sent = torch.tensor([True, True, True, True, False, False, False, False])
    predicted = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    found = silence(words, sent, predicted)
    joint = np.array([[3, 1], [1, 3]]) / 8  # sent or not, by prediction
    outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    assert found.label_bits == pytest.approx(float((joint * np.log2(joint / outer)).sum()))
    assert (found.bits, found.offload_rate, found.sent_images) == (1.0, 0.5, 4)
    assert found.top1 == 4 / 8  # the codes 0, 1, 2, and silence
    assert found.sent_top1 == 3 / 4
    always = silence(words, torch.ones(8, dtype=torch.bool), predicted)
    assert (always.bits, always.label_bits, always.top1, always.sent_top1) == (0, 0, 4 / 8, 4 / 8)
    never = silence(words, torch.zeros(8, dtype=torch.bool), predicted)
    assert (never.bits, never.top1, never.sent_top1) == (0, 1 / 8, None)
    with pytest.raises(AuditError, match="need one each"):
        silence(words, sent[:2], predicted)


def test_the_facts_of_an_obfuscator_and_its_certificate():
    setting = AttackSetting(target(Shades()), images(40), images(120, seed=1))
    steps: list[tuple[int, int]] = []
    facts = code_facts(setting, 2, views_of=60, progress=lambda _, done, total: steps.append((done, total)))
    observed = target(Shades()).payload(setting.test.images.float() / 255)[:, 0, 0, 0]
    assert (facts.bits, facts.values, facts.images) == (2, 4, 120) and facts.observed == len(set(observed.tolist()))
    assert facts.entropy_bits == pytest.approx(entropy(np.unique(observed, return_counts=True)[1], base=2))
    assert [row.count for row in facts.transmissions] == [1, 2, 4, 8, 16] and steps[-1] == (15, 16)
    counts = [row.observed for row in facts.transmissions]
    assert counts == sorted(counts) and counts[0] <= facts.observed and counts[-1] > counts[0]
    assert facts.silence is None
    source, shown = torch.Generator().manual_seed(0), setting.test.images[:60]
    views = [shown, *(another_view(shown, source, alike=True) for _ in range(15))]
    codes = np.stack([target(Shades()).payload(view.float() / 255)[:, 0, 0, 0].numpy() for view in views])
    assert counts == [len({*map(tuple, codes[:k].T)}) for k in (1, 2, 4, 8, 16)]
    assert facts == code_facts(setting, 2, views_of=60), "the same from the same seed"
    module = Shades()
    module.code_values = 3
    few = code_facts(AttackSetting(target(module), images(40), images(120, seed=1)), 2, views_of=60)
    bound = certify_code(2, few)
    assert (bound.rate_bits, bound.top1_bounds[10], bound.top1_bounds[1000]) == (math.log2(3), 0.3, 0.003)
    assert bound.code == few


def test_a_gate_is_counted():
    setting = AttackSetting(target(Shades()), images(40), images(120, seed=1))
    own = LocalClassifier(lambda x: torch.stack([400 * (x.mean(dim=(1, 2, 3)) - 0.5), 0 * x[:, 0, 0, 0]], dim=1),
                          Gate(0.98, 0.5, 10))  # fmt: skip
    setting.target = replace(setting.target, gate=own)
    facts = code_facts(setting, 2, views_of=10)
    assert facts.silence is not None and 0 < facts.silence.offload_rate < 1
    bound = certify_code(2, facts)
    assert bound.top1_bounds[100] == 0.05 and any("not sent" in words for words in bound.assumptions)


def test_views_change_all_images_alike():
    shown = images(1).images.repeat(5, 1, 1, 1)
    alike = another_view(shown, torch.Generator().manual_seed(3), alike=True)
    assert alike.shape == shown.shape and (alike == alike[:1]).all()
    assert not (another_view(shown, torch.Generator().manual_seed(3)) == alike[:1]).all()
