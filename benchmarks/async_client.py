"""Throughput and memory of `AsyncClient` with 64 requests in flight, and of `Client` in 64 threads.

`python benchmarks/async_client.py` writes results/async-client.json; `--quick` tries it and writes nothing. The server
is `sfumato serve` with the shipped classifier, on this machine; the obfuscator is the paper's, and every image is sent.

Each measurement is a process of its own, in turn. It makes a client, asks for the model's metadata, and is idle then;
memory above idle is the most that it holds afterwards, less what it holds at that point.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "alternatives"))

from memory import peak_mb  # noqa: E402

from sfumato.artifacts import shipped  # noqa: E402
from sfumato.artifacts.files import write_json  # noqa: E402
from sfumato.artifacts.provenance import provenance  # noqa: E402
from sfumato.device import AsyncClient, Client  # noqa: E402

IN_FLIGHT = 64
WARM_UP_S = 1.0
SECONDS = 10.0
ROUNDS = 5

Kind = Literal["threads", "asyncio"]
KINDS: tuple[Kind, ...] = ("threads", "asyncio")


@dataclass(frozen=True)
class Measured:
    """One process.

    Attributes:
        kind: "threads" is `Client` in 64 threads, "asyncio" is `AsyncClient`.
        predictions_per_s: of single images.
        client_cpu_ms: processor time of this process for one prediction, obfuscation included.
        median_ms: from the call to the prediction.
        p99_ms: likewise.
        idle_mb: memory of the idle process.
        above_idle_mb: the most memory under load, less that.
        failed: calls that raised an error.
    """

    kind: Kind
    predictions_per_s: float
    client_cpu_ms: float
    median_ms: float
    p99_ms: float
    idle_mb: float
    above_idle_mb: float
    failed: int


@dataclass(frozen=True)
class Comparison:
    """The results file.

    Attributes:
        in_flight: requests.
        seconds: of one measurement.
        rounds: processes of each kind, in turn.
        measurements: all of them.
        throughput_ratio: asyncio to threads, medians of the rounds; the target is at least 1.
        memory_ratio: the same of memory above idle; the target is at most 1/3.
        measured: when, where and with what.
    """

    in_flight: int
    seconds: float
    rounds: int
    measurements: tuple[Measured, ...]
    throughput_ratio: float
    memory_ratio: float
    measured: dict[str, Any]

    @classmethod
    def of(cls, measurements: list[Measured], *, seconds: float, rounds: int) -> Comparison:
        """Compare the medians."""

        def ratio(figure: Callable[[Measured], float]) -> float:
            of = {kind: statistics.median(figure(one) for one in measurements if one.kind == kind) for kind in KINDS}
            return of["asyncio"] / of["threads"]

        return cls(
            in_flight=IN_FLIGHT,
            seconds=seconds,
            rounds=rounds,
            measurements=tuple(measurements),
            throughput_ratio=ratio(lambda one: one.predictions_per_s),
            memory_ratio=ratio(lambda one: one.above_idle_mb),
            measured=provenance().to_json(),
        )


class Load:
    """What is asked, by either kind, until the time is over."""

    def __init__(self, seconds: float) -> None:
        self.images = [sample.pixels for sample in shipped.samples()]
        self.seconds = seconds
        self.waits_s: list[float] = []
        self.failed = 0
        self.from_s = time.monotonic() + WARM_UP_S
        self.until_s = self.from_s + seconds
        self.cpu_from_s: float | None = None

    def going_on(self) -> bool:
        """Return whether there is time left; note the processor time when the warm-up ends."""
        now_s = time.monotonic()
        if self.cpu_from_s is None and now_s >= self.from_s:
            self.cpu_from_s = time.process_time()
        return now_s < self.until_s

    def ended(self, start_s: float, error: Exception | None = None) -> None:
        """Count one call."""
        if error is not None:
            self.failed += 1
        elif start_s >= self.from_s:
            self.waits_s.append(time.monotonic() - start_s)

    def measured(self, kind: Kind, idle_mb: float) -> Measured:
        """Return the figures."""
        cpu_s = time.process_time() - (self.cpu_from_s or 0.0)
        return Measured(
            kind=kind,
            predictions_per_s=len(self.waits_s) / self.seconds,
            client_cpu_ms=1000 * cpu_s / max(1, len(self.waits_s)),
            median_ms=1000 * statistics.median(self.waits_s),
            p99_ms=1000 * float(np.percentile(self.waits_s, 99)),
            idle_mb=idle_mb,
            above_idle_mb=peak_mb() - idle_mb,
            failed=self.failed,
        )


def in_threads(url: str, seconds: float) -> Measured:
    """Measure `Client` in threads."""
    with Client(url, shipped.papers_obfuscator_bundle(), gate=False) as client:
        client.check()
        load = Load(seconds)
        idle_mb = _idle_mb()

        def ask(number: int) -> None:
            while load.going_on():
                start_s = time.monotonic()
                try:
                    client.classify(load.images[number % len(load.images)])
                    load.ended(start_s)
                except Exception as error:
                    load.ended(start_s, error)

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(ask, range(IN_FLIGHT)))
        return load.measured("threads", idle_mb)


async def in_asyncio(url: str, seconds: float) -> Measured:
    """Measure `AsyncClient`."""
    async with AsyncClient(url, shipped.papers_obfuscator_bundle(), gate=False, in_flight=IN_FLIGHT) as client:
        await client.check()
        load = Load(seconds)
        idle_mb = _idle_mb()

        async def ask(number: int) -> None:
            while load.going_on():
                start_s = time.monotonic()
                try:
                    await client.classify(load.images[number % len(load.images)])
                    load.ended(start_s)
                except Exception as error:
                    load.ended(start_s, error)

        await asyncio.gather(*map(ask, range(IN_FLIGHT)))
        return load.measured("asyncio", idle_mb)


def _idle_mb() -> float:
    """Return the memory that this process holds, in MiB, and begin its peak anew from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_mb()


def compare(*, seconds: float, rounds: int) -> Comparison:
    """Measure each kind in turn."""
    from offload import serving

    measurements = []
    with serving(shipped.classifier_bundle()) as (url, _):
        for _ in range(rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, "--one", kind, "--url", url, "--seconds", str(seconds)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                measurements.append(Measured(**json.loads(out)))
    return Comparison.of(measurements, seconds=seconds, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a second; writes nothing")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        threads = given.one == "threads"
        one = in_threads(given.url, given.seconds) if threads else asyncio.run(in_asyncio(given.url, given.seconds))
        print(json.dumps(asdict(one)))
        return
    found = compare(seconds=1.0, rounds=1) if given.quick else compare(seconds=given.seconds, rounds=ROUNDS)
    if not given.quick:
        write_json(HERE.parent / "results" / "async-client.json", asdict(found))
    print(json.dumps({**asdict(found), "measured": "..."}, indent=2))


if __name__ == "__main__":
    main()
