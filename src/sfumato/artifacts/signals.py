"""Signals handled for a while: Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Use these signal handlers until the block ends; outside the main thread, whose owner handles them, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def after_parent(act: Callable[[], object]) -> None:
    """Call a function in a thread once this process's parent has ended, even if it was killed."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            act()

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yield a list that gets the first Ctrl-C or SIGTERM, which then ends nothing; a second one works as usual."""
    received: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for known, handler in usual.items():
            signal.signal(known, handler)

    with handled(dict.fromkeys(usual, note)):
        yield received
