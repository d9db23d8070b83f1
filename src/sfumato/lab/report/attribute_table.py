"""What leaks of label columns through several obfuscators, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.verdict import DASH, decimals, label_columns, percent

BEGIN, END = "<!-- sfumato hides -->", "<!-- end -->"


def side_by_side(audits: Mapping[Path, AuditResult]) -> list[list[str]]:
    """Return a table: a row for each label column, then the audits' other figures; what is inferred is bold.

    Args:
        audits: of the same images and label columns; see `sfumato.lab.audit.points.read_audits`.

    Returns:
        The headers, then the rows; as many cells in each.

    Raises:
        AuditError: no audit with label columns, or audits that cannot be compared.
    """
    columns = {file: found for file, audit in audits.items() if (found := label_columns(audit))}
    if not columns:
        raise AuditError("no audit with label columns: `sfumato audit --attribute COLUMN` makes one")
    first = next(iter(columns))

    def compared_by(file: Path) -> object:
        audit = audits[file]
        return audit.data.sha256, [column.name for column in columns[file]], audit.budget.name

    for file in columns:
        if compared_by(file) != compared_by(first):
            raise AuditError(f"{file} cannot be compared with {first}: other images, other columns or another budget")
    shown = [audits[file] for file in columns]
    rows = [["", "most frequent value", "label alone", "plain image", *(audit.target.name for audit in shown)]]
    for of_column in zip(*columns.values(), strict=True):
        best = of_column[0].best
        cells = [percent(share) for share in (best.majority, best.chance, best.plain)]
        for column in of_column:
            cell = percent(column.best.accuracy)
            cells.append(f"**{cell}**" if column.finding == "inferred" else cell)
        rows.append([best.attribute, *cells])
    return rows + [[title, DASH, DASH, DASH, *(cell(audit) for audit in shown)] for title, cell in _OTHERS.items()]


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


def _reidentified(audit: AuditResult) -> str:
    """Retrieval among the most candidates, by the best attacker."""
    rows = [row for row in audit.identification if row.measure == "retrieval"]
    most = max((row.candidates for row in rows), default=0)
    return f"{percent(max(row.top1 for row in rows if row.candidates == most))} (of {most:,})" if rows else DASH


_OTHERS: dict[str, Callable[[AuditResult], str]] = {
    "the image is re-identified among others of its class": _reidentified,
    "excess leakage, at least": lambda audit: decimals(audit.best.excess_leakage if audit.best else None, 2),
    "accuracy of the cloud": lambda audit: percent(audit.utility.accuracy_obfuscated if audit.utility else None),
    "the same from plain images": lambda audit: percent(audit.utility.accuracy_plain if audit.utility else None),
    "finding of the audit": lambda audit: audit.verdict.finding,
}
