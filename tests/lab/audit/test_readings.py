"""Reading kits: what is asked, what stays hidden, and the score against readers who are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from reading_kits import AUDIT, GUESSES, TEST, TRAIN, kit
from sfumato.errors import AuditError
from sfumato.lab.audit.readings import Kit, make_kit, score_readings
from sfumato.lab.data import ImageSet
from sfumato.lab.report.reading_kit import KEY, write_kit
from synthetic import image_set


def test_every_question_shows_what_its_key_says():
    made = kit()
    means = torch.stack([TRAIN.images[TRAIN.labels == label].double().mean(dim=0) for label in range(4)])
    kinds = [entry.kind for entry in made.key.questions]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"attacker": 24, "label only": 8, "image": 8}
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)
    assert len({entry.image for entry in made.key.questions}) == 40
    for shown, candidates, entry in zip(made.shown, made.candidates, made.key.questions, strict=True):
        label = int(TEST.labels[entry.image])
        expected = {"attacker": GUESSES[entry.image], "label only": means[label], "image": TEST.images[entry.image]}
        assert float((shown.double() - expected[entry.kind].double()).abs().max()) <= 1.5
        assert torch.equal(candidates[entry.answer], TEST.images[entry.image])
        places = [int((TEST.images == one).all(dim=(1, 2, 3)).nonzero()[0, 0]) for one in candidates]
        assert len(set(places)) == 4 and {int(TEST.labels[place]) for place in places} == {label}
    answers = np.bincount([entry.answer for entry in kit(questions=100).key.questions], minlength=4)
    assert answers.min() > 12, "no place is preferred"
    assert kit().key == made.key and torch.equal(kit().shown, made.shown), "the same from the same seed"
    other = kit(seed=1)
    assert other.key.kit != made.key.kit and other.key.questions != made.key.questions


def test_small_classes_and_few_images_give_less_or_are_refused():
    few = replace(TEST, labels=torch.arange(100) // 3)
    few = ImageSet(few.images, few.labels, tuple(map(str, range(34))), "few", TEST.sha256)
    known = ImageSet(few.images, few.labels, few.names, "few", "0")
    made = make_kit(AUDIT, GUESSES, known, few)
    assert made.key.candidates == 3 and len(made.shown) == 60
    assert len(make_kit(AUDIT, GUESSES[:20], TRAIN, TEST).shown) == 20
    with pytest.raises(AuditError, match="4 images share a class"):
        make_kit(AUDIT, GUESSES[:4], TRAIN, TEST)
    with pytest.raises(AuditError, match="0 images share a class"):
        alone = ImageSet(TEST.images, torch.arange(100), tuple(map(str, range(100))), "alone", TEST.sha256)
        make_kit(AUDIT, GUESSES, alone, alone, candidates=1)
    with pytest.raises(AuditError, match="not those of the audit"):
        make_kit(AUDIT, GUESSES, TRAIN, image_set(100, seed=2))
    with pytest.raises(AuditError, match="nothing to read"):
        make_kit(AUDIT.model_copy(update={"best": None}), GUESSES, TRAIN, TEST)


def answered(folder: Path, made: Kit, name: str, answer: object, **changes: object) -> Path:
    answers = [answer(entry) for entry in made.key.questions]  # type: ignore[operator]
    said = {"schema": "sfumato.readings/1", "kit": made.key.kit, "reader": name, "answers": answers} | changes
    file = folder / f"{name}.json"
    file.write_text(json.dumps(said))
    return file


def test_readers_who_are_known_get_their_scores(tmp_path: Path):
    made = kit()
    write_kit(made, tmp_path / "kit")
    knows = answered(tmp_path, made, "knows", lambda entry: entry.answer)
    cannot = answered(tmp_path, made, "cannot", lambda entry: None)
    half = answered(
        tmp_path, made, "half",
        lambda entry: entry.answer if entry.kind == "image" or entry.image % 2 else (entry.answer + 1) % 4,
    )  # fmt: skip
    key = tmp_path / "kit" / KEY
    assert {score.kind: score.correct for score in score_readings(key, [knows]).scores} == {
        "attacker": 1, "label only": 1, "image": 1,
    }  # fmt: skip
    shrug = score_readings(key, [cannot])
    assert {score.correct for score in shrug.scores} == {0.25} and shrug.recognisability is None
    found = score_readings(key, [knows, half])
    hits = 24 + sum(entry.image % 2 for entry in made.key.questions if entry.kind == "attacker")
    score = next(one for one in found.scores if one.kind == "attacker")
    interval = binomtest(hits, 48).proportion_ci(method="wilson")
    assert (score.correct, score.answers, score.chance) == (hits / 48, 48, 0.25)
    assert (score.low, score.high) == pytest.approx((interval.low, interval.high))
    assert found.by_reader == {str(knows): 1.0, str(half): (hits - 24) / 24}
    by_kind = {one.kind: one.correct for one in found.scores}
    expected = (by_kind["attacker"] - by_kind["label only"]) / (1 - by_kind["label only"])
    assert found.recognisability == pytest.approx(min(max(expected, 0), 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kit": "another"}, "answers kit another"),
        ({"answers": [0]}, "has 1 answers, the kit has 40"),
        ({"answers": [4] * 40}, "chooses candidate 4"),
        ({"answers": [-1] * 40}, "chooses candidate -1"),
        ({"answers": "none"}, "broken"),
        ({"schema": "other"}, "broken"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, object], message: str):
    made = kit()
    write_kit(made, tmp_path / "kit")
    file = answered(tmp_path, made, "reader", lambda entry: 0, **changes)
    with pytest.raises(AuditError, match=message):
        score_readings(tmp_path / "kit" / KEY, [file])
    good = answered(tmp_path, made, "good", lambda entry: 0)
    with pytest.raises(AuditError, match="twice"):
        score_readings(tmp_path / "kit" / KEY, [good, good])
    with pytest.raises(AuditError, match="no answers"):
        score_readings(tmp_path / "kit" / KEY, [])
