"""What an attacker infers of label columns, between the label alone and the plain image."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

from scenes import SIDE, TINY, images, target
from sfumato.errors import AuditError
from sfumato.lab.attacks.label_columns import ATTACKERS
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs
from sfumato.lab.audit import label_attributes
from sfumato.lab.audit.label_attributes import THREATS, attack, column_checks, infer_columns
from sfumato.lab.audit.run import Comparison, audit
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.verdict import label_columns
from sfumato.lab.data import ImageSet, faces
from sfumato.lab.report.html import render

BUDGET = AttackBudget(images=128 * 30, steps=1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))


def marked(count: int, seed: int) -> tuple[ImageSet, Tensor, Tensor]:
    """Images of which half have a white corner; whether they do, and something that cannot be seen."""
    drawn = images(count, seed=seed)
    source = torch.Generator().manual_seed(seed)
    corner = torch.randint(2, (count,), generator=source)
    drawn.images[corner == 1, :, :8, :8] = 255
    return drawn, corner, torch.randint(2, (count,), generator=source)


@functools.cache
def rows(kind: type[nn.Module]):
    module = kind()
    (known, a, b), (asked, c, d) = marked(400, 0), marked(200, 1)
    columns = {"corner": (a, c), "unseen": (b, d), "class": (known.labels, asked.labels)}
    found = infer_columns(AttackSetting(target(module), known, asked), columns, budget=BUDGET, test_images=150)
    assert [(row.attribute, row.threat) for row in found] == [(name, t) for name in columns for t in THREATS]
    return {(row.attribute, str(row.threat)): row for row in found}


def test_a_payload_that_is_the_image_gives_what_the_image_gives():
    found = rows(nn.Identity)
    row = found["corner", "white-box"]
    assert row.accuracy > 0.95 and row.plain > 0.95 and row.test_images == 150
    assert row.low < row.accuracy <= row.high
    assert row.attacker in ATTACKERS and 0.9 < row.held_out < 1
    assert abs(row.majority - 0.5) < 0.1 and abs(row.chance - 0.5) < 0.12
    assert found["corner", "pairs"].accuracy > 0.9
    assert found["unseen", "white-box"].low < 0.55


@pytest.mark.long
def test_nothing_is_inferred_from_a_constant_and_what_could_have_been_is_known():
    found = rows(Constant)
    for threat in THREATS:
        row = found["corner", threat]
        assert row.low < row.chance + 0.05 and row.plain > 0.95


@pytest.mark.long
def test_a_column_that_goes_with_the_class_is_given_by_the_label_alone():
    row = rows(Constant)["class", "white-box"]
    assert row.chance == 1 and row.majority < 0.3


@pytest.mark.long
def test_faces_as_they_are_give_away_skin_and_as_a_constant_nothing():
    sets, columns = [], {"skin": [], "hat": []}
    for split, count in (("train", 600), ("test", 200)):
        known = {name: torch.from_numpy(values[:count]) for name, values in faces.factors("faces", split).items()}
        drawn = torch.from_numpy(faces.synthesise("faces", split, range(count), (SIDE, SIDE)))
        sets.append(ImageSet(drawn, known["expression"], faces.NAMES["expression"], "faces", split))
        for name, values in columns.items():
            values.append(known[name])
    asked = {name: (a, b) for name, (a, b) in columns.items()}
    for module, inferred in ((nn.Identity(), True), (Constant(), False)):
        for row in infer_columns(AttackSetting(target(module), *sets), asked, budget=BUDGET, test_images=200):
            if row.attribute == "skin" or not inferred:
                assert (row.low > row.chance + 0.05) is inferred, row


@pytest.mark.long
def test_an_audit_with_columns_says_what_is_hidden_and_what_not(tmp_path):
    (known, a, b), (asked, c, d) = marked(240, 0), marked(160, 1)
    budget = dataclasses.replace(TINY, trials=TINY.trials[:1], column_images=128 * 60, column_test_images=160)
    with_columns = Comparison(attributes={"corner": (a, c), "unseen": (b, d)})
    plain, constant = (AttackSetting(target(module), known, asked) for module in (nn.Identity(), Constant()))
    found = audit(plain, budget, tmp_path / "audit", comparison=with_columns)
    corner, unseen = label_columns(found)
    assert (corner.name, corner.finding, unseen.finding) == ("corner", "inferred", "not shown")
    assert corner.remaining == pytest.approx(1, abs=0.1) and unseen.remaining is None
    assert set(corner.by_threat) == {"white-box", "pairs"}
    assert 'of 2 label columns 1 are inferred: "corner" in ' in found.verdict.sentences[0]
    page = render(found, None)
    assert "Attribute inference" in page and "not shown" in page
    hidden = audit(constant, budget, tmp_path / "hidden", comparison=with_columns)
    assert [column.finding for column in label_columns(hidden)] == ["not inferred", "not shown"]
    assert "0 are inferred: none" in hidden.verdict.sentences[0]


def test_every_image_needs_a_value():
    (known, a, _), (asked, c, _) = marked(40, 0), marked(20, 1)
    with pytest.raises(AuditError, match="39 values of 'corner' for 40 images"):
        infer_columns(
            AttackSetting(target(nn.Identity()), known, asked), {"corner": (a[1:], c)}, budget=BUDGET, test_images=20
        )


def test_a_column_with_one_value_says_that_there_is_nothing_to_infer():
    (known, a, _), (asked, c, _) = marked(40, 0), marked(20, 1)
    setting = AttackSetting(target(nn.Identity()), known, asked)
    with pytest.raises(AuditError, match="all 40 training images have the same value of 'corner'"):
        infer_columns(setting, {"corner": (a * 0, c)}, budget=BUDGET, test_images=20)


def test_fewer_images_than_a_batch_do_and_a_single_one_does_not():
    (known, a, _), (asked, c, _) = marked(12, 0), marked(6, 1)
    few = AttackBudget(images=128, steps=1)
    setting = AttackSetting(target(nn.Identity()), known, asked)
    assert len(infer_columns(setting, {"corner": (a, c)}, budget=few, test_images=6)) == 2
    one = FixedPairs(known.images[:1], known.images[:1].float())
    with pytest.raises(AuditError, match="at least 2 images to learn from, got 1"):
        attack(one, {"corner": a[:1]}, asked.images.float(), {"corner": c}, few)


def fooled(monkeypatch, *, held: int, on_test: str):
    """Guesses of which one attacker's are correct on the images held out, another one's on the test images."""

    def guess(pairs, known, observed, values, budget):
        truth = observed[:, 0, 0, 0].long()
        good = {who: {"a": truth.clone()} for who in ATTACKERS}
        for number, who in enumerate(ATTACKERS):
            good[who]["a"][:held] += int(number != 1)
            if who != on_test:
                good[who]["a"][held:] += 1
        return good

    monkeypatch.setattr(label_attributes, "guess_columns", guess)


@pytest.mark.parametrize(("on_test", "correct"), [(ATTACKERS[0], 0), (ATTACKERS[1], 30)])
def test_the_attacker_is_chosen_on_images_held_out_never_on_test_images(monkeypatch, on_test, correct):
    values = torch.arange(130) % 2
    payloads = values[:, None, None, None].expand(-1, 3, 4, 4).float()
    fooled(monkeypatch, held=20, on_test=on_test)
    pairs = FixedPairs(payloads[:100].byte(), payloads[:100])
    found = attack(pairs, {"a": values[:100]}, payloads[100:], {"a": values[100:]}, BUDGET)["a"]
    assert (found.attacker, found.correct) == (ATTACKERS[1], correct)
    assert 0.8 < found.held_out < 1


def test_the_checks_pass_and_their_result_is_kept(monkeypatch):
    first = column_checks()
    assert [check.passed for check in first] == [True, True], first
    monkeypatch.setattr(label_attributes, "guess_columns", None)
    assert column_checks() == first


def lazy(modules, losses, budget, *, learning_rate):
    modules.eval()


def nearsighted(pairs, known, observed, values, seed):
    return {name: torch.zeros(len(observed), dtype=torch.int64) for name in values}


@pytest.mark.parametrize(
    ("name", "broken"),
    [("image_attributes.train", lazy), ("label_columns._by_nearest", nearsighted)],
    ids=["networks that learn nothing", "neighbours that are never found"],
)
def test_the_checks_fail_when_an_attacker_is_broken(monkeypatch, name, broken):
    monkeypatch.setattr(f"sfumato.lab.attacks.{name}", broken)
    found, nothing = column_checks()
    assert (found.passed, nothing.passed) == (False, True), found


def test_the_checks_fail_when_the_truth_leaks_to_an_attacker(monkeypatch):
    def cheating(pairs, known, observed, values, budget):
        mark = torch.randint(2, (600,), generator=torch.Generator().manual_seed(0))
        return {who: {"mark": mark[-len(observed) :]} for who in ATTACKERS}

    monkeypatch.setattr(label_attributes, "guess_columns", cheating)
    assert [check.passed for check in column_checks()] == [True, False]
