"""Ctrl-C and SIGTERM as a wish to stop at the next safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects the first Ctrl-C or SIGTERM instead of dying of it; a second one works as usual."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs us there handles signals himself
        pass
    try:
        yield received
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
