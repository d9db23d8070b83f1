"""What commands print: tables and lines for people, one JSON object for scripts."""

from __future__ import annotations

import json
import os
import traceback
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

_UNBROKEN = 10_000
"""Characters in a line, of which a table uses what it needs."""

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
    """Print a table on standard output; without a terminal, each row is one line, however long.

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
    fitted = Console()
    whole = not fitted.is_terminal and "COLUMNS" not in os.environ
    (Console(width=_UNBROKEN) if whole else fitted).print(table)


def print_figures(figures: Mapping[str, Any], indent: str = "") -> None:
    """Print a bundle's figures, one a line; what an audit or an export has found is left to its own report."""
    for name, value in figures.items():
        if not isinstance(value, Mapping):
            shares = ("accuracy", "mean_average_precision", "f1_", "offload_rate")
            share = name.startswith(shares) or name.endswith("agreement")
            typer.echo(f"{indent}{name}: {percent(value) if share else plain_number(value)}")


def plain_number(value: object) -> str:
    """0.05002798749906942 -> "0.05003", 10000 -> "10,000"; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


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
        SfumatoError: a library is not installed, or cannot be loaded; ServingError if it is one of the server's.
    """
    kind = ServingError if extra == "serve" else SfumatoError
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sfumato"):
            raise
        raise kind(f"{error.name} is not installed; run: pip install 'sfumato[{extra}]'") from error
    except (ImportError, OSError) as error:
        library = _being_imported(error)
        if library is None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        again = f"pip install --force-reinstall {library}"
        raise kind(f"{library} is installed, but cannot be loaded ({reason}); run: {again}") from error


def _being_imported(error: ImportError | OSError) -> str | None:
    """Return the library whose import failed with this error; None if anything else failed."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")) for frame in frames if frame.f_code.co_name == "<module>"]
    name = (error.name if isinstance(error, ImportError) else None) or (names[-1] if names else "")
    library = name.partition(".")[0]
    return None if library in ("", "sfumato", "__main__") else library
