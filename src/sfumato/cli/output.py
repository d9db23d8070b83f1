"""How commands answer: tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, TypeVar

import typer

from sfumato.errors import ServingError, SfumatoError

T = TypeVar("T")
_WORTH_A_BAR = 10

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead.")]


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object, on one line."""
    typer.echo(json.dumps(value))


def percent(value: float) -> str:
    """0.9134 -> "91.34 %"."""
    return f"{100 * value:.2f} %"


def print_skipped(failed: Iterable[Mapping[str, str]]) -> None:
    """One line on standard error for each image that could not be used."""
    for failure in failed:
        typer.echo(f"skipped: {failure['error']}", err=True)


def progress(items: Sequence[T], doing: str, *, quiet: bool) -> Iterable[T]:
    """The items, with a bar on standard error while they are gone through, if there are enough to wait for."""
    from rich.console import Console
    from rich.progress import track

    hidden = quiet or len(items) < _WORTH_A_BAR
    return track(items, doing, console=Console(stderr=True), transient=True, disable=hidden)


@contextmanager
def counted(total: int, doing: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and remaining time, if there is enough to wait for; yields what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    hidden = quiet or total < _WORTH_A_BAR
    # What is printed meanwhile stays where it belongs: failures go above the bar, results to standard output.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=hidden, redirect_stdout=False
    ) as progress:
        task = progress.add_task(doing, total=total, rate="")

        def advance(by: int) -> None:
            progress.advance(task, by)
            speed = progress.tasks[0].speed
            progress.update(task, rate="" if speed is None else f"{speed:,.0f}/s")

        yield advance


def needs_train_extra() -> AbstractContextManager[None]:
    """Turns a missing library of the lab's into advice.

    Raises:
        SfumatoError: a library is not installed.
    """
    return _needs_extra("train", SfumatoError)


def needs_serve_extra() -> AbstractContextManager[None]:
    """Turns a missing library of the server's into advice.

    Raises:
        ServingError: a library is not installed.
    """
    return _needs_extra("serve", ServingError)


def needs_executorch_extra() -> AbstractContextManager[None]:
    """Turns a missing ExecuTorch, or library of the lab's, into advice.

    Raises:
        SfumatoError: a library is not installed.
    """
    return _needs_extra("executorch", SfumatoError)


@contextmanager
def _needs_extra(extra: str, kind: type[SfumatoError]) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sfumato"):
            raise
        raise kind(f"{error.name} is not installed; run: pip install 'sfumato[{extra}]'") from error
