"""What several obfuscators hide of the same label columns, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import AuditError
from sfumato.lab.audit.verdict import DASH, decimals, hides, percent

BEGIN, END = "<!-- sfumato hides -->", "<!-- end -->"
ENDS = (("most frequent value", "majority"), ("label alone", "chance"), ("plain image", "plain"))


def side_by_side(audits: Mapping[Path, dict[str, Any]]) -> list[list[str]]:
    """A table: a row for each label column, then what is given for it; what is told stands in bold.

    Args:
        audits: contents of `audit.json` files, of the same images and label columns; see
            `sfumato.lab.report.points.read_audits`.

    Returns:
        The headers, then the rows; as many cells in each.

    Raises:
        AuditError: no audit with label columns, or audits that cannot be compared.
    """
    columns = {file: {row["attribute"]: row for row in hides(audit)} for file, audit in audits.items()}
    columns = {file: rows for file, rows in columns.items() if rows}
    if not columns:
        raise AuditError("no audit with label columns: `sfumato audit --attribute COLUMN` makes one")
    first = next(iter(columns))
    for file in columns:
        same = [(audits[f]["data"]["sha256"], list(columns[f]), audits[f]["budget"]["name"]) for f in (first, file)]
        if same[0] != same[1]:
            raise AuditError(f"{file} cannot stand beside {first}: other images, other columns or another budget")
    shown = [audits[file] for file in columns]
    rows = [["", *(title for title, _ in ENDS), *(str(audit["target"]["name"]) for audit in shown)]]
    for name, told in columns[first].items():
        cells = [percent(rows_[name]["accuracy"]) for rows_ in columns.values()]
        bold = [
            f"**{cell}**" if rows_[name]["finding"] == "told" else cell
            for cell, rows_ in zip(cells, columns.values(), strict=True)
        ]
        rows.append([name, *(percent(told[key]) for _, key in ENDS), *bold])
    return rows + [[title, *[DASH] * len(ENDS), *(cell(audit) for audit in shown)] for title, cell in _OTHERS.items()]


def markdown(rows: list[list[str]]) -> str:
    """The table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_into(page: Path, table: str) -> None:
    """Puts a table between `BEGIN` and `END` on a Markdown page; see `write_between`."""
    write_between(page, BEGIN, END, table)


def write_between(page: Path, begin: str, end: str, table: str) -> None:
    """Puts a table between two lines of a Markdown page, in place of what stands there.

    Raises:
        AuditError: the page cannot be read or written, or has no such place.
    """
    try:
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise AuditError(f"{page} has no lines {begin!r} and {end!r} for the table to stand between")
        page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{page} cannot be changed: {getattr(error, 'strerror', None) or error}") from error


def _found(audit: dict[str, Any]) -> str:
    """Retrieval among the most candidates, by the best attacker."""
    rows = [row for row in audit["identification"] if row["measure"] == "retrieval"]
    most = max((row["candidates"] for row in rows), default=0)
    rows = [row for row in rows if row["candidates"] == most]
    return f"{percent(max(row['top1'] for row in rows))} (of {most:,})" if rows else DASH


_OTHERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "the image is found among others of its class": _found,
    "excess leakage, at least": lambda audit: decimals((audit["best"] or {}).get("excess_leakage"), 2),
    "accuracy of the cloud": lambda audit: percent((audit["utility"] or {}).get("accuracy_obfuscated")),
    "the same from plain images": lambda audit: percent((audit["utility"] or {}).get("accuracy_plain")),
    "finding of the audit": lambda audit: str(audit["verdict"]["finding"]),
}
