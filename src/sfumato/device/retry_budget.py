"""A limit on retries over all calls of a client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PER_REQUEST = 0.2
PER_SECOND = 10.0
RESERVE = 100.0


class RetryBudget:
    """Lets about one request in five be retried, and ten a second besides.

    When a server fails under load, retries of everything in flight would multiply the load. One call's `retries` are
    rarely affected; many calls' are. Several threads may use it.

    Source: RetryBudget of Twitter's Finagle, with its defaults (20 %, 10 a second, saved up for 10 s).

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left = RESERVE
        self._counted_s = clock()

    def add(self) -> None:
        """Count a request, not its retries."""
        with self._lock:
            self._left = min(RESERVE, self._refilled() + PER_REQUEST)

    def take(self) -> bool:
        """Return whether a retry may be made now, and count it."""
        with self._lock:
            self._left = self._refilled()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def _refilled(self) -> float:
        now_s = self._clock()
        added, self._counted_s = (now_s - self._counted_s) * PER_SECOND, now_s
        return min(RESERVE, self._left + added)
