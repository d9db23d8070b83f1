"""Parts of pages that the benchmarks write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, and an empty one."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)] + [""]


def titled(title: str, says: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a section of one table: title, a sentence that ends in a colon, and the table."""
    return [f"## {title}", "", f"{sentence(says)}:", "", *table(head, rows)]


def percent(share: float, digits: int = 1) -> str:
    """0.934 -> "93.4 %"."""
    return f"{100 * share:.{digits}f} %"
