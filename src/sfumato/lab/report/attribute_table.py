"""What leaks of label columns through several obfuscators: a table, typed, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import ANOTHER_VIEW, Identification
from sfumato.lab.attacks.image_attributes import Attribute
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.schema import AuditResult, BudgetFacts, DataFacts, Finding, Provenance
from sfumato.lab.audit.verdict import DASH, decimals, infers, label_columns, percent, reidentifies

SCHEMA: Literal["sfumato.attributes/1"] = "sfumato.attributes/1"
BEGIN, END = "<!-- sfumato hides -->", "<!-- end -->"
MAJORITY, LABEL, PLAIN = "most frequent value", "label alone", "plain image"
"""Rows that are no obfuscator; the last one is of the same attackers."""


class Row(Model):
    """What leaks through one obfuscator.

    Attributes:
        name: of its audit's file.
        fingerprint: SHA-256 of what it computes, in hex; empty if not known.
        accuracy: of the useful prediction, by the classifier from the payload; None if it was not measured.
        attributes: of the chosen attacker for each column, in the order of the columns.
        linkage: of two views of one image, by the best attacker on the test images.
        reidentification: of the image, likewise.
        excess_leakage: 0, only the label leaks; 1, the image; None if no attacker finished.
        finding: of the audit.
        provenance: of the audit.
    """

    name: str
    fingerprint: str
    accuracy: float | None
    attributes: tuple[Attribute, ...]
    linkage: Identification | None
    reidentification: Identification | None
    excess_leakage: float | None
    finding: Finding
    provenance: Provenance


class AttributeTable(Model):
    """What `sfumato audit --attributes-table` prints.

    Attributes:
        data: that all audits share.
        height: rows of the images.
        width: columns of the images.
        budget: that all audits share.
        accuracy_plain: of the useful prediction from plain images; None if no audit measured it.
        rows: one for each audit with label columns, in the order of their files' names.
    """

    model_config = ConfigDict(title="sfumato audit --attributes-table", serialize_by_alias=True)

    version: Literal["sfumato.attributes/1"] = Field(default=SCHEMA, alias="schema")
    data: DataFacts
    height: int
    width: int
    budget: BudgetFacts
    accuracy_plain: float | None
    rows: tuple[Row, ...]


def side_by_side(audits: Mapping[Path, AuditResult]) -> AttributeTable:
    """Compare audits of the same images and label columns; those without any are left out.

    Args:
        audits: see `sfumato.lab.audit.points.read_audits`.

    Raises:
        AuditError: no audit with label columns, or audits that cannot be compared.
    """
    shown = {file: (audit, columns) for file, audit in audits.items() if (columns := label_columns(audit))}
    if not shown:
        raise AuditError("no audit with label columns: `sfumato audit --attribute COLUMN` makes one")
    first = next(iter(shown))

    def compared_by(file: Path) -> object:
        audit, columns = shown[file]
        size = audit.target.height, audit.target.width
        return audit.data.sha256, size, [column.name for column in columns], audit.budget

    for file in shown:
        if compared_by(file) != compared_by(first):
            raise AuditError(f"{file} cannot be compared with {first}: other images, other columns or another budget")
    rows = [
        Row(
            name=file.stem,
            fingerprint=audit.target.fingerprint,
            accuracy=audit.utility.accuracy_obfuscated if audit.utility else None,
            attributes=tuple(column.best for column in columns),
            linkage=_best(audit, "linkage"),
            reidentification=_best(audit, "retrieval"),
            excess_leakage=audit.best.excess_leakage if audit.best else None,
            finding=audit.verdict.finding,
            provenance=audit.provenance,
        )
        for file, (audit, columns) in shown.items()
    ]
    audit, _ = shown[first]
    plain = [audit.utility.accuracy_plain for audit, _ in shown.values() if audit.utility]
    return AttributeTable(
        data=audit.data,
        height=audit.target.height,
        width=audit.target.width,
        budget=audit.budget,
        accuracy_plain=max(plain, default=None),
        rows=tuple(rows),
    )


def cells(table: AttributeTable, titles: Mapping[str, str] | None = None) -> list[list[str]]:
    """Return a table's headers, then its rows, as many cells in each; what is clearly above chance is bold.

    Args:
        table: to show.
        titles: of its rows by their names, in the order to show; the names and their order if None.
    """
    titles = titles or {row.name: row.name for row in table.rows}
    by_name = {row.name: row for row in table.rows}
    shown = [(title, by_name[name]) for name, title in titles.items() if name in by_name]
    first = table.rows[0]
    rates = [_among("two views linked", first.linkage), _among("image re-identified", first.reidentification)]
    found = [["", "accuracy", *(one.attribute for one in first.attributes), *rates, "excess leakage", "finding"]]
    nothing = [DASH] * 4
    found += [
        [MAJORITY, DASH, *(percent(one.majority) for one in first.attributes), *nothing],
        [LABEL, DASH, *(percent(one.chance) for one in first.attributes), *nothing],
        [PLAIN, percent(table.accuracy_plain), *(percent(one.plain) for one in first.attributes), *nothing],
    ]
    for title, row in shown:
        inferred = [_bold(percent(one.accuracy), infers(one.low, one.chance)) for one in row.attributes]
        found_again = [
            _bold(percent(one.top1), reidentifies(one)) if one else DASH for one in (row.linkage, row.reidentification)
        ]
        leakage = decimals(row.excess_leakage, 2)
        found.append([title, percent(row.accuracy), *inferred, *found_again, leakage, row.finding])
    return found


def markdown(rows: list[list[str]]) -> str:
    """Return the table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_between(page: Path, table: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a table between two lines of a Markdown page, in place of what is there.

    Raises:
        AuditError: the page cannot be read or written, or has no such place.
    """
    try:
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise AuditError(f"{page} has no lines {begin!r} and {end!r} to put the table between")
        with whole_file(page) as partial:
            partial.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{page} cannot be changed: {getattr(error, 'strerror', None) or error}") from error


def _best(audit: AuditResult, measure: Literal["linkage", "retrieval"]) -> Identification | None:
    """The best attacker among the most candidates; of linkage, with two views, as equal images are linked anyway."""
    rows = [
        row
        for row in audit.identification
        if row.measure == measure and (measure == "retrieval" or row.attacker.endswith(ANOTHER_VIEW))
    ]
    most = max((row.candidates for row in rows), default=0)
    return max((row for row in rows if row.candidates == most), key=lambda row: row.top1, default=None)


def _among(title: str, row: Identification | None) -> str:
    return title if row is None else f"{title} among {row.candidates:,}"


def _bold(cell: str, leaks: bool) -> str:
    return f"**{cell}**" if leaks else cell
