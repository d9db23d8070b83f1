"""What the benchmarks share: timing several things in turn, so that a busy moment hits them alike."""

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
    """Times each thing once a round.

    Args:
        things: what is timed, by name.
        warm_up: rounds that are not counted.
        rounds: rounds that are.
        repeats: calls in a row that one time is the mean of.
        settle: calls before those in each round, so that what ran before does not leave its data in the caches.
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
