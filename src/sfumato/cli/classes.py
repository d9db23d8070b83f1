"""The table of accuracy by class, and the confusion matrix, as `evaluate` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from sfumato.cli.output import percent, print_table

if TYPE_CHECKING:
    from sfumato.lab.evaluation.by_class import ByClass, ClassAccuracy
    from sfumato.lab.evaluation.multi_label import ClassPrecision, PrecisionByClass

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
        cells = _shares(one, paths)
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


def print_precision_by_class(found: PrecisionByClass) -> None:
    """Print each class's average precision and F1; of many classes, those of the lowest as deployed."""
    columns = {
        "average_precision_plain": "AP, plain images",
        "average_precision_obfuscated": "AP, payloads",
        "f1_plain": "F1, plain images",
        "f1_obfuscated": "F1, payloads",
    }
    known = [one for one in found.classes if one.images]
    columns = {key: title for key, title in columns.items() if any(getattr(one, key) is not None for one in known)}
    deployed = (
        "average_precision_obfuscated" if "average_precision_obfuscated" in columns else "average_precision_plain"
    )
    shown, title = found.classes, "average precision (AP) and F1 by class"
    if len(shown) > _MOST_CLASSES:
        shown = tuple(sorted(known, key=lambda one: getattr(one, deployed))[:_WORST])
        title = f"the {len(shown)} classes of the lowest average precision (AP), of {len(found.classes):,}"
    rows = [(one.label, f"{one.images:,}", *_shares(one, columns)) for one in shown]
    headers = ("class", "images with it", *columns.values())
    typer.echo("")
    print_table(headers, rows, numbers=range(1, len(headers)), title=title)
    typer.echo("")


def _shares(one: ClassAccuracy | ClassPrecision, keys: Iterable[str]) -> list[str]:
    """Return a class's figures as cells; a dash where nothing was measured."""
    shares = [getattr(one, key) for key in keys]
    return ["-" if share is None else percent(share, 1) for share in shares]


def _print_matrix(found: ByClass) -> None:
    columns = range(len(found.classes))
    rows = [
        (f"{place} {found.classes[place].label}", *(f"{count:,}" if count else "." for count in row))
        for place, row in enumerate(found.matrix.tolist())
    ]
    title = f"images of each class (row) by the predicted class (column), {_HEADERS[found.predicted_from]}"
    typer.echo("")
    print_table(("", *map(str, columns)), rows, numbers=range(1, len(columns) + 1), title=title)
