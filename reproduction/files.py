"""Reads and writes the results files. This module needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from reproduction.schema import Machine, Results
from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.errors import ResultsError
from sfumato.lab.evaluation.results import as_type, read_object

SCHEMA = "sfumato.reproduction/2"
_READABLE = (SCHEMA, "sfumato.reproduction/1")

R = TypeVar("R", bound=Results)


def results_path(folder: Path, size: str, table: str) -> Path:
    """Return the path of a results file."""
    return folder / f"{size}-{table}.json"


def write_results(folder: Path, size: str, found: Results, **facts: object) -> Path:
    """Write a table's figures with their provenance, and return the path.

    Args:
        folder: of the results files.
        size: of the plan.
        found: the figures.
        **facts: for the provenance.

    Raises:
        BundleError: the file cannot be written.
    """
    path = results_path(folder, size, found.table)
    said = found.model_dump(mode="json", exclude={"size", "provenance"})
    head = {"schema": SCHEMA, "size": size, "table": found.table}
    write_json(path, {**head, **said, "provenance": provenance(**facts).to_json()})
    return path


def read_results(folder: Path, size: str, kind: type[R]) -> R | None:
    """Read a table's figures; return None if there is no such file.

    Raises:
        ResultsError: the file is no JSON, of another table, or malformed.
    """
    path = results_path(folder, size, kind.table)
    found = read_object(path)
    if found is None:
        return None
    head = tuple(found.get(key) for key in ("schema", "size", "table"))
    if head not in [(schema, size, kind.table) for schema in _READABLE]:
        expected = SCHEMA, size, kind.table
        raise ResultsError(f"{path} is {head}, expected {expected}; move it away to make it again")
    return as_type(kind, found, f"{path} is malformed; move it away to make it again")


class _StepTimes(BaseModel):
    plain_two_pass: float
    ours: float


class _StepMeasured(BaseModel):
    machine: Machine


class TrainingStep(BaseModel):
    """What the page shows of `results/training-step.json`, which `benchmarks/training_step.py` writes."""

    what: str
    threads: int
    speedup: float
    median_ms: _StepTimes
    images_per_s: _StepTimes
    measured: _StepMeasured


def read_training_step(folder: Path) -> TrainingStep | None:
    """Read the benchmark of the training step in the folder of all results; return None if it was not measured."""
    path = folder / "training-step.json"
    found = read_object(path)
    if found is None or "images_per_s" not in found:
        return None
    return as_type(TrainingStep, found, f"{path} is malformed; move it away to make it again")
