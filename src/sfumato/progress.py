"""How anything that takes long reports: two callbacks, silent unless the caller passes its own.

The command line draws bars from them (`sfumato.cli.progress`); a notebook or a service passes what suits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")

Say = Callable[[str], None]
"""Is given a line for people that stays: the accuracy after an epoch, a part of a queue that is finished."""


class Progress(Protocol):
    """Is called as work goes on, often, from the thread that works; must not raise.

    Stages nest by name alone: an outer stage ("audit", 3 of 23) and the inner one that runs now are reported by turns.
    """

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report one stage.

        Args:
            stage: what runs now, in a few words; the same stage is reported again and again.
            done: finished steps, from 0 to `total`; a stage is over when they are equal.
            total: all steps of the stage.
            note: its figures of the moment, such as "loss 0.71, 412 images/s".
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing: the default of everything that takes a `Progress`."""


def mute(line: str) -> None:
    """Say nothing: the default of everything that takes a `Say`."""


def tracked(items: Iterable[T], stage: str, progress: Progress, *, total: int | None = None) -> Iterator[T]:
    """Yield items and report each that is done with.

    Args:
        items: what is gone through.
        stage: see `Progress`.
        progress: see `Progress`.
        total: how many there are; None for `len(items)`, which must then exist.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    progress(stage, 0, count)
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done, max(done, count))
