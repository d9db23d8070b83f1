"""How commands answer: tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead.")]


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object, on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def percent(value: float) -> str:
    """0.9134 -> "91.34 %"."""
    return f"{100 * value:.2f} %"


def print_skipped(failed: Iterable[Mapping[str, str]]) -> None:
    """One line on standard error for each picture that could not be used."""
    for failure in failed:
        typer.echo(f"skipped: {failure['error']}", err=True)
