"""Coroutines that never suspend, so that blocking code can call what it shares with asynchronous code.

What the two kinds of clients do is written once, as coroutines. Where those have to wait, they await a transport: that
of asyncio suspends them; a blocking one waits inside, so that they run from start to end in one step and need no loop.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that does not suspend, and return its result.

    Raises:
        RuntimeError: it suspended; it was closed.
        Exception: whatever it raises.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended; a blocking caller has no event loop to wait in")
