"""Time several things alternately, so that a busy moment affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def time_in_turn(
    things: Mapping[str, Callable[[], object]],
    *,
    warm_up: int,
    rounds: int,
    repeats: int = 1,
    settle: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each thing once per round.

    Args:
        things: to time, by name.
        warm_up: rounds that are not counted.
        rounds: that are counted.
        repeats: consecutive calls per round, which are averaged.
        settle: untimed calls before those in each round, to refill the caches.
        clock: in seconds; `time.thread_time` counts this thread's processor time alone.

    Returns:
        One time per round in milliseconds, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in things}
    for round_ in range(warm_up + rounds):
        for name, thing in things.items():
            for _ in range(settle):
                thing()
            start = clock()
            for _ in range(repeats):
                thing()
            if round_ >= warm_up:
                times[name].append((clock() - start) * 1000 / repeats)
    return times
