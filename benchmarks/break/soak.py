"""Keep `sfumato serve` at full load while models are reloaded, replicas die and clients misbehave: does anything drift?

`python benchmarks/break/soak.py --minutes 30` (`make soak`) writes results/soak.json. Every prediction is compared with
the one computed without a server; memory and descriptors of all processes are sampled every second, and the last third
of the time is compared with the first. It ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path += [str(HERE.parent), str(HERE.parents[2] / "tests")]

import numpy as np
from http_fuzz import Served, served
from http_requests import TOKEN, Requests, predictions, replies_in

import tiny
from serving import children_of, named
from sfumato.artifacts.provenance import provenance
from sfumato.device import Client
from sfumato.errors import EndpointError

ROOT = HERE.parents[2]
REPLICAS, CLIENTS, MISBEHAVING = 2, 6, 4
RELOAD_S, KILL_S = 10.0, 30.0
GRACE_S = 3.0
"""A request may fail, after its retries, so long after a replica was killed; a wrong prediction may never come."""
MOST_GROWTH = 0.10
"""The last third of the time may take this much more memory than the first."""
MOST_MORE_DESCRIPTORS = 16


@dataclass
class Soak:
    """What is counted while the server runs.

    Attributes:
        until: when it ends, as `time.monotonic` has it.
        right: predictions that equal the offline ones.
        wrong: predictions that do not.
        failed: errors by their name, at times when no replica had just been killed.
        excused: errors in the seconds after a kill.
        killed_at: when a replica was killed last.
        events: reloads, kills, and what misbehaving clients did.
        samples: (seconds, megabytes, descriptors) of all processes together.
    """

    until: float
    right: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    killed_at: float = -1e9
    events: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.until

    def count(self, right: int, wrong: int, error: Exception | None = None, begun: float = 0.0) -> None:
        """Count the outcome of a request that began then."""
        with self.lock:
            self.right += right
            self.wrong += wrong
            if error is not None:
                just_killed = begun - GRACE_S < self.killed_at
                (self.excused if just_killed else self.failed)[type(error).__name__] += 1


def well_behaved(soak: Soak, url: str, obfuscator: Path, seed: int) -> None:
    """Classify one image after the other through the client, and compare."""
    rng = np.random.default_rng(seed)
    with Client(url, obfuscator, token=TOKEN, gate=False) as client:
        while not soak.over:
            image = rng.integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
            payload = client.obfuscator.obfuscate(image).tensor[None]
            wanted = tiny.logits(payload)[0].astype(np.float64)
            begun = time.monotonic()
            try:
                found = client.classify(image).probabilities
            except EndpointError as error:
                soak.count(0, 0, error, begun)
                continue
            exponentials = np.exp(wanted - wanted.max())
            same = np.allclose(found, exponentials / exponentials.sum(), atol=1e-4)
            soak.count(int(same), int(not same))


def misbehaving(soak: Soak, server: Served, seed: int) -> None:
    """Do what the server has to survive, one thing after the other."""
    rng, requests = random.Random(seed), Requests(tiny.SIZE)
    things: list[Callable[[random.Random, Requests, socket.socket, Soak], str]] = [
        _slow, _non_reading, _pipelining, _garbage, _silent,
    ]  # fmt: skip
    while not soak.over:
        try:
            with socket.create_connection((server.host, server.port), timeout=5) as connection:
                done = rng.choice(things)(rng, requests, connection, soak)
        except OSError:
            done = "cut off by the server"
        with soak.lock:
            soak.events[done] += 1


def _slow(rng: random.Random, requests: Requests, connection: socket.socket, soak: Soak) -> str:
    data = requests.sending(rng).pieces[0]
    for at in range(min(len(data), 40)):
        connection.sendall(data[at : at + 1])
        time.sleep(0.1)
        if soak.over:
            break
    return "a byte at a time"


def _non_reading(rng: random.Random, requests: Requests, connection: socket.socket, soak: Soak) -> str:
    data = b"".join(b"".join(requests.request(np.zeros((1, 3, tiny.SIZE, tiny.SIZE), np.float32))) for _ in range(50))
    connection.settimeout(2)
    for _ in range(40):
        connection.sendall(data)
    return "sends and never reads"


def _pipelining(rng: random.Random, requests: Requests, connection: socket.socket, soak: Soak) -> str:
    sending = requests.kinds["pipelined"](rng)
    begun, received = time.monotonic(), b""
    connection.sendall(sending.pieces[0])
    while len(replies_in(received)[0]) < len(sending.expected):
        data = connection.recv(2**16)
        if not data:
            return "cut off by the server"
        received += data
    found = [predictions(reply) for reply in replies_in(received)[0]]
    same = sum(
        logits is not None and np.allclose(logits, tiny.logits(image), atol=1e-4)
        for image, logits in zip(sending.expected, found, strict=True)
    )
    refused = sum(logits is None for logits in found)  # "too many requests are waiting"
    soak.count(same, len(found) - same - refused, begun=begun)
    return "pipelines"


def _garbage(rng: random.Random, requests: Requests, connection: socket.socket, soak: Soak) -> str:
    connection.sendall(rng.randbytes(rng.randint(1, 4000)))
    connection.settimeout(1)
    connection.recv(1000)
    return "sends garbage"


def _silent(rng: random.Random, requests: Requests, connection: socket.socket, soak: Soak) -> str:
    time.sleep(min(3.0, max(0.0, soak.until - time.monotonic())))
    return "says nothing"


def disturb(soak: Soak, server: Served) -> None:
    """Reload the models and kill replicas, at intervals."""
    reload_at, kill_at = time.monotonic() + RELOAD_S, time.monotonic() + KILL_S
    while not soak.over:
        now = time.monotonic()
        if now > reload_at:
            server.process.send_signal(signal.SIGHUP)
            soak.events["reload"] += 1
            reload_at = now + RELOAD_S
        if now > kill_at:
            replicas = named(children_of(server.process.pid), "spawn_main")
            if len(replicas) == REPLICAS:
                soak.killed_at = now
                os.kill(replicas[0], signal.SIGKILL)
                soak.events["replica killed"] += 1
            kill_at = now + KILL_S
        time.sleep(0.2)


def sample(soak: Soak, server: Served) -> None:
    """Note memory and descriptors of all processes every second, except while a replica is missing."""
    begun = time.monotonic()
    while not soak.over:
        processes = [server.process.pid, *children_of(server.process.pid)]
        if len(named(processes, "spawn_main")) == REPLICAS:
            try:
                files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)
                soak.samples.append((time.monotonic() - begun, sum(map(_memory_mb, processes)), files))
            except OSError:
                pass  # one has just died
        time.sleep(1)


def _memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soaked(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run the soak and return what was found."""
    obfuscator, _ = tiny.save_bundles(folder)
    with served("--replicas", str(REPLICAS), "--receive-timeout", "5") as server:
        soak = Soak(time.monotonic() + 60 * minutes)
        url = f"http://{server.host}:{server.port}"
        work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(disturb, (server,)), (sample, (server,))]
        work += [(well_behaved, (url, obfuscator.path, seed + number)) for number in range(CLIENTS)]
        work += [(misbehaving, (server, seed + 100 + number)) for number in range(MISBEHAVING)]
        threads = [threading.Thread(target=do, args=(soak, *given), daemon=True) for do, given in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60 * minutes + 60)
        stuck = sum(thread.is_alive() for thread in threads)
    thirds = _thirds(soak.samples)
    traces = sum("Traceback" in line for line in server.log)
    wrong = {
        "a prediction differs from the one offline": soak.wrong > 0,
        "no prediction came": soak.right == 0,
        "requests failed without a cause": bool(soak.failed),
        "memory grew": thirds["memory_mb"][1] > thirds["memory_mb"][0] * (1 + MOST_GROWTH),
        "descriptors were lost": thirds["descriptors"][1] > thirds["descriptors"][0] + MOST_MORE_DESCRIPTORS,
        "a traceback in the log": traces > 0,
        "the server did not end well": server.process.returncode != 0,
        "a client hangs": stuck > 0,
    }
    return {
        "schema": "sfumato.soak/1",
        "what": f"{REPLICAS} replicas, {CLIENTS} clients that ask without a pause, {MISBEHAVING} that misbehave",
        "minutes": minutes,
        "seed": seed,
        "predictions": soak.right,
        "wrong_predictions": soak.wrong,
        "failed": dict(soak.failed),
        "failed_within_seconds_of_a_kill": dict(soak.excused),
        "events": dict(soak.events),
        "first_and_last_third": thirds,
        "most_memory_mb": max((mb for _, mb, _ in soak.samples), default=0.0),
        "tracebacks": traces,
        "found": [what for what, so in wrong.items() if so],
        "passed": not any(wrong.values()),
        "measured": provenance().to_json(),
    }


def _thirds(samples: list[tuple[float, float, int]]) -> dict[str, list[float]]:
    """Return the medians of the first and the last third of the samples."""
    third = max(1, len(samples) // 3)
    parts = (samples[:third], samples[-third:])
    return {
        "memory_mb": [statistics.median([mb for _, mb, _ in part] or [0.0]) for part in parts],
        "descriptors": [statistics.median([files for *_, files in part] or [0]) for part in parts],
        "samples": [len(part) for part in parts],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "soak.json")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = soaked(given.minutes, given.seed, Path(folder))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "measured"}, indent=2))
    return int(not result["passed"])


if __name__ == "__main__":
    sys.exit(main())
