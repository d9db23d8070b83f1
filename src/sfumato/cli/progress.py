"""Bars on standard error for what libraries report, or lines where there is no terminal: see `sfumato.progress`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sfumato.progress import Progress, Say

LINE_EVERY_S = 10.0
"""Seconds between two lines of what is in progress, without a terminal."""


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
    """Draw bars while the block runs; without a terminal, print every `LINE_EVERY_S` what is in progress.

    Lines that are said are printed in any case, unless `quiet`.
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
    running: dict[str, str] = {}

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        running.pop(stage, None)  # what was reported last stands last
        if done < total:
            running[stage] = " ".join(f"{stage} {done:,} of {total:,}  {note}".split())
        if done >= total and stage in tasks:
            drawn.remove_task(tasks.pop(stage))
        elif done < total and stage not in tasks:
            tasks[stage] = drawn.add_task(stage, total=total, completed=done, note=note)
        elif stage in tasks:
            drawn.update(tasks[stage], completed=done, total=total, note=note)

    def say(line: str) -> None:
        if not quiet:
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    first = os.environ.get("LOCAL_RANK", "0") == "0"  # as Lightning numbers the processes of a training
    with drawn, _saying_often(running, say, enabled=first and not quiet and not console.is_terminal):
        yield Shown(progress, say)


@contextmanager
def _saying_often(running: dict[str, str], say: Callable[[str], None], *, enabled: bool) -> Iterator[None]:
    """Say every `LINE_EVERY_S` what is in progress, from a thread: a stage that reports nothing must not look dead."""
    ended, started = threading.Event(), time.monotonic()

    def work() -> None:
        while not ended.wait(LINE_EVERY_S):
            now = "; ".join(running.copy().values()) or "working"
            say(f"{time.monotonic() - started:.0f} s: {now}")

    thread = threading.Thread(target=work, daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if enabled:
            thread.join()
