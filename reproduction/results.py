"""The results files: one for each table and size, from which the page is made. This module needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.artifacts.bundle import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.errors import ResultsError
from sfumato.lab.runs.folders import read_json

SCHEMA = "sfumato.reproduction/1"


def results_path(folder: Path, size: str, name: str) -> Path:
    """The file of a table."""
    return folder / f"{size}-{name}.json"


def write_results(folder: Path, size: str, name: str, found: dict[str, Any], **facts: Any) -> Path:
    """Writes a table's figures with where they come from.

    Args:
        folder: of the results files.
        size: of the plan.
        name: of the table.
        found: plain JSON values.
        **facts: for the provenance.

    Returns:
        The file.

    Raises:
        BundleError: the disk refuses.
    """
    path = results_path(folder, size, name)
    write_json(
        path, {"schema": SCHEMA, "size": size, "table": name, **found, "provenance": provenance(**facts).to_json()}
    )
    return path


def read_results(folder: Path, size: str, name: str) -> dict[str, Any] | None:
    """Reads a table's figures; None if nobody made them yet.

    Raises:
        ResultsError: the file is no JSON, or another table's.
    """
    path = results_path(folder, size, name)
    found = read_json(path)
    if found is None:
        return None
    stated = tuple(found.get(key) for key in ("schema", "size", "table"))
    if stated != (SCHEMA, size, name):
        raise ResultsError(f"{path} states {stated}; {(SCHEMA, size, name)} is expected: move it away, then make it")
    return found
