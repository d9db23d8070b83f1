"""Audits side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes import changed, fake_audit
from sfumato.errors import AuditError
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.report.attribute_table import BEGIN, END, AttributeTable, cells, markdown, side_by_side, write_between

ROOT = Path(__file__).parents[3]


def asked(name: str, accuracy: float, **changes) -> AuditResult:
    one = {"attribute": "glasses", "threat": "white-box", "accuracy": accuracy, "low": accuracy - 0.02}
    one |= {"high": accuracy + 0.02, "chance": 0.6, "majority": 0.55, "plain": 0.9, "test_images": 4_000}
    one |= {"attacker": "residual network", "held_out": accuracy - 0.1}
    other = {**one, "threat": "pairs", "accuracy": 0.99, "low": 0.98, "held_out": accuracy - 0.2}
    known = {"threat": "white-box", "chance": 0.01, "queries": 500, "high": 1}
    identification = [
        {"measure": measure, "attacker": attacker, "candidates": count, "top1": top1, "low": top1 - 0.005, **known}
        for measure, attacker, count, top1 in (
            ("linkage", "distance, same image again", 100, 1.0),
            ("linkage", "distance, another view", 10, 0.9),
            ("linkage", "distance, another view", 100, 0.02),
            ("linkage", "contrastive embedding, another view", 100, 0.04),
            ("retrieval", "contrastive embedding", 100, 0.012),
        )
    ]
    return fake_audit(attributes=[one, other], identification=identification, target={"name": name}, **changes)


AUDITS = {Path("a/clear.json"): asked("identity", 0.85), Path("a/dim.json"): asked("blur", 0.62)}


def test_a_row_for_each_audit_beside_both_ends_and_what_leaks_in_bold():
    rows = cells(side_by_side(AUDITS))
    rates = ["two views linked among 100", "image re-identified among 100"]
    assert rows[0] == ["", "accuracy", "glasses", *rates, "excess leakage", "finding"]
    assert [row[:3] for row in rows[1:]] == [
        ["most frequent value", "\N{EN DASH}", "55.0 %"],
        ["label alone", "\N{EN DASH}", "60.0 %"],
        ["plain image", "91.4 %", "90.0 %"],
        ["clear", "90.0 %", "**85.0 %**"],
        ["dim", "90.0 %", "62.0 %"],
    ]
    assert {len(row) for row in rows} == {7}
    # By the better attacker of two views; that the same image twice is linked says nothing.
    assert rows[4][3:] == ["**4.0 %**", "1.2 %", "0.02", "withstood"]
    lines = markdown(rows).splitlines()
    assert lines[1].count("---") == 7 and lines[2].startswith("| most frequent value |")


def test_the_attacker_that_did_best_on_images_held_out_counts():
    """The other one, by chance better on the test images, does not."""
    row = side_by_side(AUDITS).rows[0]
    assert [(one.threat, one.accuracy) for one in row.attributes] == [("white-box", 0.85)]


def test_rows_have_titles_and_an_order_of_their_own_on_a_page():
    rows = cells(side_by_side(AUDITS), {"dim": "blur, strong", "missing": "not there", "clear": "in the clear"})
    assert [row[0] for row in rows[4:]] == ["blur, strong", "in the clear"]


def test_a_table_comes_back_from_its_json():
    table = side_by_side(AUDITS)
    assert table.as_json["schema"] == "sfumato.attributes/1"
    assert AttributeTable.of(json.loads(json.dumps(table.as_json)), "a file") == table


def test_audits_without_columns_are_passed_over_and_none_at_all_is_said():
    assert len(side_by_side({Path("a.json"): asked("clear", 0.8), Path("b.json"): fake_audit()}).rows) == 1
    with pytest.raises(AuditError, match="--attribute COLUMN"):
        side_by_side({Path("b.json"): fake_audit()})


def test_an_audit_without_classifier_and_identification_has_dashes():
    lone = asked("clear", 0.8, utility=None).model_copy(update={"identification": ()})
    row = cells(side_by_side({Path("a.json"): lone}))[-1]
    assert row == ["a", "\N{EN DASH}", "**80.0 %**", "\N{EN DASH}", "\N{EN DASH}", "0.02", "withstood"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"sha256": {"train": "another", "test": "another"}}},
        {"target": {"height": 48}},
        {"budget": {"description": "attackers of an earlier version"}},
    ],
    ids=["images", "size", "budget"],
)
def test_audits_of_other_images_or_budgets_cannot_stand_side_by_side(changes):
    other = changed(asked("dim", 0.62), **changes)
    with pytest.raises(AuditError, match=r"b\.json cannot be compared with a\.json"):
        side_by_side({Path("a.json"): asked("clear", 0.85), Path("b.json"): other})


@pytest.mark.skipif(not (ROOT / "results" / "people").is_dir(), reason="`make people` was not run")
def test_the_page_on_people_has_the_figures_of_the_results():
    audits = read_audits(ROOT / "results" / "people")
    page = (ROOT / "docs" / "how-to" / "private-attributes.md").read_text(encoding="utf-8")
    assert markdown(cells(side_by_side(audits))) in page
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
