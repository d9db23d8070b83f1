"""What commands print: tables and lines for people, one JSON object for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfumato.errors import ServingError, SfumatoError

if TYPE_CHECKING:
    from sfumato.lab.audit.schema import SanityCheck

Extra = Literal["train", "serve", "executorch", "hub"]


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object, on one line."""
    typer.echo(json.dumps(value))


def percent(value: float, digits: int = 2) -> str:
    """0.9134 -> "91.34 %"."""
    return f"{100 * value:.{digits}f} %"


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    numbers: Collection[int] = (),
    title: str | None = None,
) -> None:
    """Print a table on standard output.

    Args:
        headers: one for each column.
        rows: one cell for each column; a `str` is printed as it is, without markup.
        numbers: the columns that are aligned to the right.
        title: a line above.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, header in enumerate(headers):
        table.add_column(header, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    Console().print(table)


def print_figures(figures: Mapping[str, Any], indent: str = "") -> None:
    """Print a bundle's figures, one a line."""
    for name, value in figures.items():
        typer.echo(f"{indent}{name}: {percent(value) if name.startswith(('accuracy', 'offload_rate')) else value}")


def print_skipped(failed: Iterable[Mapping[str, str]]) -> None:
    """Print one line on standard error for each image that could not be used."""
    for failure in failed:
        typer.echo(f"skipped: {failure['error']}", err=True)


def print_checks(checks: Iterable[SanityCheck]) -> None:
    """Print one line for each sanity check of an attack."""
    for check in checks:
        typer.echo(f"{check.name}: {'passed' if check.passed else 'FAILED'} ({check.measured}; needed {check.needed})")


def conclude(
    result: Mapping[str, object], checks: Iterable[SanityCheck], show: Callable[[], None], *, as_json: bool
) -> None:
    """Print a result, for scripts or by `show` for people.

    Raises:
        typer.Exit: a sanity check failed.
    """
    if as_json:
        print_json(result)
    else:
        show()
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def prepare(out: Path | None) -> None:
    """Make the folder of a file to write, before the long part: a folder that cannot be written is named at once."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def write_result(out: Path | None, result: Mapping[str, object]) -> None:
    """Write a results file, if one was asked for, and name it on standard error."""
    from sfumato.artifacts.files import write_json

    if out is not None:
        write_json(out, dict(result))
        typer.echo(f"written: {out}", err=True)


@contextmanager
def needs_extra(extra: Extra) -> Iterator[None]:
    """Say what to install if an import of the block fails.

    Raises:
        SfumatoError: a library is not installed; ServingError if it is one of the server's.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sfumato"):
            raise
        kind = ServingError if extra == "serve" else SfumatoError
        raise kind(f"{error.name} is not installed; run: pip install 'sfumato[{extra}]'") from error
