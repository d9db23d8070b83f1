"""Bars on standard error for what libraries report: see `sfumato.progress`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sfumato.progress import Progress, Say


@dataclass(frozen=True)
class Shown:
    """What a command hands to the library that it calls.

    Attributes:
        progress: draws one bar for each stage that is not over.
        say: prints a line above the bars.
    """

    progress: Progress
    say: Say


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Shown]:
    """Draw bars while the block runs.

    Bars are drawn on a terminal only; lines are printed in any case, unless `quiet`.
    """
    console = Console(stderr=True)
    drawn = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        redirect_stdout=False,  # results stay on standard output; lines on standard error go above the bars
        disable=quiet or not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if done >= total and stage in tasks:
            drawn.remove_task(tasks.pop(stage))
        elif done < total and stage not in tasks:
            tasks[stage] = drawn.add_task(stage, total=total, completed=done, note=note)
        elif stage in tasks:
            drawn.update(tasks[stage], completed=done, total=total, note=note)

    def say(line: str) -> None:
        if not quiet:
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    with drawn:
        yield Shown(progress, say)
