"""Many images, several in progress at once: results in order, memory bounded, nothing new after the first error."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from sfumato.errors import EndpointError

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 8
"""Enough for a camera of 40 images a second and a round trip of 0.2 s."""


def in_order(ask: Callable[[T], R], items: Iterable[T], *, in_flight: int = IN_FLIGHT) -> Iterator[R]:
    """Yield the results of a slow function in the order of its items, computing several at the same time.

    A thread of its own takes the items, so that a camera that has nothing new holds up no result, and only while
    fewer than `in_flight` are in progress or not yet taken from the iterator, so that a slow reader fills no memory.
    Ending early (an error, `close`, Ctrl-C) takes no further item and drops those not begun; those in progress are
    waited for.

    Args:
        ask: is called in several threads.
        items: may never end.
        in_flight: how many may be in progress.

    Raises:
        EndpointError: `in_flight` is not positive.
        Exception: whatever `items` or `ask` raises, at its place in the order.
    """
    if in_flight < 1:
        raise EndpointError(f"in_flight must be at least 1, got {in_flight}")
    return _in_order(ask, items, in_flight)


def _in_order(ask: Callable[[T], R], items: Iterable[T], in_flight: int) -> Iterator[R]:
    waiting: queue.SimpleQueue[Future[R] | None] = queue.SimpleQueue()
    room = threading.Semaphore(in_flight)
    stopped = threading.Event()
    context = copy_context()  # so that spans lie below the caller's
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="sfumato-asks")

    def feed() -> None:
        rest = iter(items)
        try:
            while room.acquire() and not stopped.is_set():
                item = next(rest)
                waiting.put(pool.submit(context.copy().run, ask, item))
        except StopIteration:
            waiting.put(None)
        except BaseException as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            waiting.put(failed)

    threading.Thread(target=feed, name="sfumato-takes", daemon=True).start()
    try:
        while (future := waiting.get()) is not None:
            result = future.result()
            room.release()
            yield result
    finally:
        stopped.set()
        room.release()
        pool.shutdown(wait=True, cancel_futures=True)
