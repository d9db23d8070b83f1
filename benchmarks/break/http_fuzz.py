"""Send requests of every kind to `sfumato serve` and judge the responses; then see what it cost the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from http_requests import TOKEN, Malformed, Reply, Requests, Sending, predictions, replies_in
from outcomes import ACCEPTED, REFUSED, Judged, Part

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import tiny

CLIENTS = 32
WAIT_S = 30.0
"""How long a response that has to come may take, on a busy machine."""
IDLE_S = 0.15
"""So long is waited for a response that need not come."""
MOST_GROWTH_MB = 64
_CLEAR_S = 10.0


@dataclass
class Served:
    """A running server: its address, its process and its log."""

    host: str
    port: int
    process: subprocess.Popen[str]
    log: list[str]

    def memory_mb(self) -> float:
        """Return the resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def descriptors(self) -> int:
        """Return how many files and sockets are open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def served(*options: str) -> Iterator[Served]:
    """Serve the tests' tiny classifier with a token, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        _, classifier = tiny.save_bundles(Path(folder))
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        command = [sys.executable, "-m", "sfumato", "serve", str(classifier.path), "--port", "0", "--json"]
        command += ["--token-file", str(token), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        log: list[str] = []
        listener = threading.Thread(target=lambda: log.extend(iter(process.stderr.readline, "")), daemon=True)
        listener.start()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: {''.join(log)}")
        address = urlsplit(line.split('"url": "')[1].split('"')[0])
        try:
            yield Served(address.hostname or "", address.port or 0, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            listener.join(5)


def tried(part: Part, cases: range, examples: Path) -> None:
    """Send these cases, then check what is left: memory, descriptors, the log, and that valid requests succeed."""
    begun = time.perf_counter()
    with served() as server:
        warm = range(-64, 0)  # of the same kinds, so that buffers and caches have their size
        asyncio.run(_all(server, Part("warm-up", part.seed), warm, examples))
        memory, descriptors = server.memory_mb(), server.descriptors()
        asyncio.run(_all(server, part, cases, examples))
        descriptors_after = _settled(server, descriptors)
        memory_after = server.memory_mb()
        _check(part, examples, "memory", memory_after - memory <= MOST_GROWTH_MB, "the server's memory has grown")
        _check(part, examples, "descriptors", descriptors_after <= descriptors, "connections are left open")
    _check(part, examples, "exit", server.process.returncode == 0, f"exit code {server.process.returncode}")
    _check(part, examples, "log", "Traceback" not in "".join(server.log), "a traceback in the log")
    part.facts |= {
        "memory_mb": [round(memory, 1), round(memory_after, 1)],
        "descriptors": [descriptors, descriptors_after],
        "clients": CLIENTS,
        "log_lines": len(server.log),
    }
    part.seconds += time.perf_counter() - begun


def _check(part: Part, examples: Path, what: str, good: bool, otherwise: str) -> None:
    part.add(-1, Judged(f"after all: {what}", ACCEPTED if good else "wrong", "" if good else otherwise), examples)


def _settled(server: Served, wanted: int) -> int:
    until = time.monotonic() + _CLEAR_S
    while server.descriptors() > wanted and time.monotonic() < until:
        time.sleep(0.1)
    return server.descriptors()


async def _all(server: Served, part: Part, cases: range, examples: Path) -> None:
    numbers, requests = iter(cases), Requests(tiny.SIZE)

    async def client() -> None:
        for case in numbers:
            sending = requests.sending(random.Random(part.seed * 10**9 + case))
            part.add(case, await _judged(server, sending), examples)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _judged(server: Served, sending: Sending) -> Judged:
    example = b"".join(sending.pieces)

    def failed(outcome: str, detail: str) -> Judged:
        return Judged(sending.mutation, outcome, detail, example)

    wanted = len(sending.expected) or int(bool(sending.statuses))
    try:
        replies, closed = await _exchange(server, sending, wanted)
    except Malformed as error:
        return failed("malformed response", str(error))
    except OSError as error:
        return failed("no connection", type(error).__name__)
    broken = sorted({reply.status for reply in replies if reply.status >= 500 and reply.status != 503})
    if broken:
        return failed("server error", f"status {broken[0]}")
    if sending.hang_up:
        return Judged(sending.mutation, "abandoned")
    cut = sending.may_close and closed and bool(replies)
    if len(replies) < wanted and not cut:
        return failed("no response", f"{len(replies)} of {wanted} responses" if wanted > 1 else "a response is missing")
    if sending.expected:
        wrong = _difference(sending, [predictions(reply) for reply in replies])
        return failed("wrong", wrong) if wrong else Judged(sending.mutation, "closed" if cut else ACCEPTED)
    if sending.statuses and replies[0].status not in sending.statuses:
        return failed("wrong", f"status {replies[0].status}")
    if not replies:
        return Judged(sending.mutation, "closed" if closed else "waiting")
    status = replies[-1].status
    return Judged(sending.mutation, "busy" if status == 503 else ACCEPTED if status < 300 else REFUSED)


def _difference(sending: Sending, found: list[np.ndarray | None]) -> str:
    """Return what is wrong with the predictions for the first of the requests, "" if nothing is."""
    if len(found) > len(sending.expected):
        return "there are more responses than requests"
    for image, logits in zip(sending.expected, found, strict=False):
        if logits is None:
            return "a valid request is refused"
        wanted = tiny.logits(image)
        if logits.shape != wanted.shape or not np.allclose(logits, wanted, atol=1e-4):
            return "a prediction differs from the one offline"
    return ""


async def _exchange(server: Served, sending: Sending, wanted: int) -> tuple[list[Reply], bool]:
    """Send, and read until the responses that have to come are there; without such, until nothing comes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    received, closed = b"", False
    try:
        with contextlib.suppress(ConnectionError):  # the server may refuse before everything is sent
            for number, piece in enumerate(sending.pieces):
                if number:
                    await asyncio.sleep(0.002)
                writer.write(piece)
                await writer.drain()
        if sending.hang_up:
            writer.transport.abort()
            return [], True
        wait_s = WAIT_S if wanted else IDLE_S
        try:
            async with asyncio.timeout(wait_s) as limit:
                while len(replies_in(received)[0]) < max(wanted, 1):
                    data = await reader.read(2**16)
                    if not data:
                        closed = True
                        break
                    received += data
                    if not wanted:
                        limit.reschedule(asyncio.get_running_loop().time() + IDLE_S)
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True
        return replies_in(received)[0], closed
    finally:
        writer.transport.abort()
