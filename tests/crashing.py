"""A judge that crashes, hangs or raises at some cases; a module of its own, as another process imports it."""

from __future__ import annotations

import os
import random
import time
from typing import Any

CRASHES, HANGS = 3, 5


def judge(judged: Any, seed: int) -> Any:
    """Return the judge; cases are told by the random numbers that they begin with."""
    numbers = {random.Random(seed * 10**9 + case).random(): case for case in range(20)}

    def one(rng: random.Random) -> Any:
        case = numbers[rng.random()]
        if case == CRASHES:
            os.abort()
        if case == HANGS:
            time.sleep(60)
        return judged("some", "accepted")

    return one
