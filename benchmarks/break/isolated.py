"""Judge inputs in a process of its own, so that a crash or an endless loop is an outcome and not the end.

A case is determined by its number, so the process that takes over repeats those that had not been reported.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from outcomes import Judged, Part

Judge = Callable[[random.Random], Judged]
LIMIT_S = 20.0
"""A case that takes longer hangs; on a busy machine, the slowest good ones take a second."""
MEMORY_BYTES = 16 * 2**30
_REPORT_S = 0.5


def judged_apart(
    part: Part, make: Callable[[], Judge], cases: range, *, examples: Path, limit_s: float = LIMIT_S
) -> None:
    """Judge these cases and add what became of them to the part.

    Args:
        part: gets the counts, the failures, and `peak_memory_mb`.
        make: called in the process to make the judge; a module's function or a `partial` of one.
        cases: their numbers.
        examples: the folder that failing inputs are saved to.
        limit_s: how long one case may take.
    """
    context = multiprocessing.get_context("spawn")
    begun, first, skip = time.perf_counter(), cases.start, set[int]()
    while first < cases.stop:
        near, far = context.Pipe(duplex=False)
        at = context.Value("q", -1, lock=False)
        arguments = (make, part.seed, range(first, cases.stop), skip, at, far)
        process = context.Process(target=_judge_all, args=arguments, daemon=True)
        process.start()
        far.close()
        first, hung = _collected(part, process, near, at, first, examples, limit_s)
        process.join()
        if first < cases.stop:
            if at.value < first:
                raise RuntimeError(f"the judge of {part.name} cannot be made: exit code {process.exitcode}")
            what = "takes too long" if hung else f"exit code {process.exitcode}"
            part.add(at.value, Judged("any", "hang" if hung else "crash", what), examples)
            skip.add(at.value)
    part.seconds += time.perf_counter() - begun


def _collected(
    part: Part, process: Any, reports: Connection, at: Any, first: int, examples: Path, limit_s: float
) -> tuple[int, bool]:
    """Take reports until the process ends; return the first case that was not reported, and whether it hung."""
    last, since = -1, time.monotonic()
    while True:
        try:
            if reports.poll(_REPORT_S):
                counted, failures, first, peak_mb = reports.recv()
                part.count(counted, failures, examples)
                part.facts["peak_memory_mb"] = max(peak_mb, part.facts.get("peak_memory_mb", 0))
                continue
        except EOFError:
            return first, False
        if at.value != last:
            last, since = at.value, time.monotonic()
        elif last >= 0 and time.monotonic() - since > limit_s:
            process.kill()
            return first, True


def _judge_all(
    make: Callable[[], Judge], seed: int, cases: range, skip: set[int], at: Any, reports: Connection
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    judge = make()
    counted: Counter[tuple[str, str]] = Counter()
    failures: list[tuple[int, Judged]] = []
    due = time.monotonic() + _REPORT_S
    for case in cases:
        if case in skip:
            continue
        at.value = case
        judged = judge(random.Random(seed * 10**9 + case))
        counted[judged.mutation, judged.outcome] += 1
        if judged.failed:
            failures.append((case, judged))
        if time.monotonic() > due:
            reports.send((counted, failures, case + 1, _peak_mb()))
            counted, failures, due = Counter(), [], time.monotonic() + _REPORT_S
    reports.send((counted, failures, cases.stop, _peak_mb()))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
