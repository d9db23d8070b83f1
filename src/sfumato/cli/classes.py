"""The table of accuracy by class, and the confusion matrix, as `evaluate` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from sfumato.cli.output import percent, print_table

if TYPE_CHECKING:
    from sfumato.lab.evaluation.by_class import ByClass

_MOST_CLASSES = 20
_WORST = 10
_HEADERS = {"plain": "plain images", "obfuscated": "payloads", "gated": "with the gate"}


def print_by_class(found: ByClass) -> None:
    """Print each class's accuracy and the confusion matrix, or, of many classes, those with the lowest accuracy."""
    few = len(found.classes) <= _MOST_CLASSES
    places = list(range(len(found.classes))) if few else found.worst(_WORST)
    paths = [path for path in _HEADERS if any(getattr(one, path) is not None for one in found.classes)]
    rows = []
    for place in places:
        one, other = found.classes[place], found.taken_for(place)
        shares = [getattr(one, path) for path in paths]
        cells = ["-" if share is None else percent(share, 1) for share in shares]
        taken = "" if other is None else f"{found.classes[other.predicted].label} ({other.images:,})"
        rows.append((f"{place} {one.label}" if few else one.label, f"{one.images:,}", *cells, taken))
    title = (
        "accuracy by class" if few else f"the {len(places)} classes of the lowest accuracy, of {len(found.classes):,}"
    )
    headers = ("class", "images", *(_HEADERS[path] for path in paths), "most often taken for")
    typer.echo("")
    print_table(headers, rows, numbers=range(1, len(headers) - 1), title=title)
    if few and found.confused:
        _print_matrix(found)
    typer.echo("")


def _print_matrix(found: ByClass) -> None:
    columns = range(len(found.classes))
    rows = [
        (f"{place} {found.classes[place].label}", *(f"{count:,}" if count else "." for count in row))
        for place, row in enumerate(found.matrix.tolist())
    ]
    title = f"images of each class (row) by the predicted class (column), {_HEADERS[found.predicted_from]}"
    typer.echo("")
    print_table(("", *map(str, columns)), rows, numbers=range(1, len(columns) + 1), title=title)
