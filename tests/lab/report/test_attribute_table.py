"""Audits side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import fake_audit
from sfumato.errors import AuditError
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.report.attribute_table import BEGIN, END, markdown, side_by_side, write_between

ROOT = Path(__file__).parents[3]


def asked(name: str, accuracy: float, **changes) -> AuditResult:
    one = {"attribute": "glasses", "threat": "white-box", "accuracy": accuracy, "low": accuracy - 0.02}
    one |= {"high": accuracy + 0.02, "chance": 0.6, "majority": 0.55, "plain": 0.9, "test_images": 4_000}
    other = {**one, "threat": "pairs", "accuracy": 0.61, "low": 0.59}
    return fake_audit(attributes=[one, other], target={"name": name}, **changes)


def test_what_is_told_stands_in_bold_beside_both_ends():
    rows = side_by_side({Path("a.json"): asked("clear", 0.85), Path("b.json"): asked("dim", 0.62)})
    assert rows[0] == ["", "most frequent value", "label alone", "plain image", "clear", "dim"]
    assert rows[1] == ["glasses", "55.0 %", "60.0 %", "90.0 %", "**85.0 %**", "62.0 %"]
    assert {len(row) for row in rows} == {6}
    lines = markdown(rows).splitlines()
    assert lines[1].count("---") == 6 and lines[2].startswith("| glasses | 55.0 % |")


def test_audits_without_columns_are_passed_over_and_none_at_all_is_said():
    assert len(side_by_side({Path("a.json"): asked("clear", 0.8), Path("b.json"): fake_audit()})[0]) == 5
    with pytest.raises(AuditError, match="--attribute COLUMN"):
        side_by_side({Path("b.json"): fake_audit()})


def test_audits_of_other_images_cannot_stand_side_by_side():
    other = asked("dim", 0.62, data={"sha256": {"train": "another", "test": "another"}})
    with pytest.raises(AuditError, match=r"b\.json cannot be compared with a\.json"):
        side_by_side({Path("a.json"): asked("clear", 0.85), Path("b.json"): other})


@pytest.mark.skipif(not (ROOT / "results" / "people").is_dir(), reason="`make people` was not run")
def test_the_page_on_people_has_the_figures_of_the_results():
    audits = read_audits(ROOT / "results" / "people")
    page = (ROOT / "docs" / "how-to" / "private-attributes.md").read_text(encoding="utf-8")
    assert markdown(side_by_side(audits)) in page
    for audit in audits.values():
        assert audit.data.source == "faces" and audit.provenance.commit


def test_a_table_is_put_into_its_place_on_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between(page, "| new |")
    write_between(page, "| newer |")
    assert page.read_text() == f"before\n{BEGIN}\n| newer |\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(AuditError, match="has no lines"):
        write_between(page, "| new |")
    assert page.read_text() == "nothing"
