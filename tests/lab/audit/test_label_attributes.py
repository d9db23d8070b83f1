"""What an attacker tells of label columns, between the label alone and the plain image."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

from scenes import SIDE, TINY, images, target
from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import Effort
from sfumato.lab.audit.label_attributes import THREATS, ask
from sfumato.lab.audit.run import Beside, audit
from sfumato.lab.audit.setting import Scene
from sfumato.lab.audit.verdict import hides
from sfumato.lab.data import ImageSet, faces

EFFORT = Effort(images=128 * 60, steps=1)


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
    found = ask(Scene(target(module), known, asked), columns, effort=EFFORT, test_images=150)
    assert [(row.attribute, row.threat) for row in found] == [(name, t) for name in columns for t in THREATS]
    return {(row.attribute, str(row.threat)): row for row in found}


def test_what_payload_unchanged_tells_what_the_image_tells():
    found = rows(nn.Identity)
    row = found["corner", "white-box"]
    assert row.accuracy > 0.95 and row.plain > 0.95 and row.test_images == 150
    assert row.low < row.accuracy <= row.high
    assert abs(row.majority - 0.5) < 0.1 and abs(row.chance - 0.5) < 0.12
    assert found["corner", "pairs"].accuracy > 0.9
    assert found["unseen", "white-box"].low < 0.55


def test_nothing_is_told_from_a_constant_and_what_could_have_been_is_known():
    found = rows(Constant)
    for threat in THREATS:
        row = found["corner", threat]
        assert row.low < row.chance + 0.05 and row.plain > 0.95


def test_a_column_that_goes_with_the_class_is_told_by_the_label_alone():
    row = rows(Constant)["class", "white-box"]
    assert row.chance == 1 and row.majority < 0.3


def test_faces_as_they_are_give_away_skin_and_as_a_constant_nothing():
    sets, columns = [], {"skin": [], "hat": []}
    for split, count in (("train", 600), ("test", 200)):
        known = {name: torch.from_numpy(values[:count]) for name, values in faces.factors("faces", split).items()}
        drawn = torch.from_numpy(faces.synthesise("faces", split, range(count), (SIDE, SIDE)))
        sets.append(ImageSet(drawn, known["expression"], faces.NAMES["expression"], "faces", split))
        for name, values in columns.items():
            values.append(known[name])
    asked = {name: (a, b) for name, (a, b) in columns.items()}
    for module, told in ((nn.Identity(), True), (Constant(), False)):
        columns = {"skin": asked["skin"]} if told else asked
        for row in ask(Scene(target(module), *sets), columns, effort=EFFORT, test_images=200):
            assert (row.low > row.chance + 0.05) is told, row


def test_an_audit_with_columns_says_what_is_hidden_and_what_not(tmp_path):
    (known, a, b), (asked, c, d) = marked(240, 0), marked(160, 1)
    budget = dataclasses.replace(TINY, trials=TINY.trials[:1], column_images=128 * 60, column_test_images=160)
    beside = Beside(attributes={"corner": (a, c), "unseen": (b, d)})
    found = audit(Scene(target(nn.Identity()), known, asked), budget, tmp_path / "audit", beside=beside)
    corner, unseen = hides(found)
    assert (corner["attribute"], corner["finding"], unseen["finding"]) == ("corner", "told", "not shown")
    assert corner["kept"] == pytest.approx(1, abs=0.1) and unseen["kept"] is None
    assert set(corner["by_threat"]) == {"white-box", "pairs"}
    assert 'of 2 label columns 1 are told: "corner" in ' in found["verdict"]["sentences"][0]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "What it hides and what not" in page and "not shown" in page
    hidden = audit(Scene(target(Constant()), known, asked), budget, tmp_path / "hidden", beside=beside)
    assert [row["finding"] for row in hides(hidden)] == ["not told", "not shown"]
    assert "0 are told: none" in hidden["verdict"]["sentences"][0]


def test_every_image_needs_a_value():
    (known, a, _), (asked, c, _) = marked(40, 0), marked(20, 1)
    with pytest.raises(AuditError, match="39 values of 'corner' for 40 images"):
        ask(Scene(target(nn.Identity()), known, asked), {"corner": (a[1:], c)}, effort=EFFORT, test_images=20)
