"""The embedded server in several processes behind one port, for machines with several cores.

Each process is the whole server with models of its own. The kernel distributes connections; dead processes are
replaced.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Unpack

from sfumato.artifacts.signals import Handler, after_parent, handled
from sfumato.cloud import logs
from sfumato.cloud.app import check_options
from sfumato.cloud.limits import Limits
from sfumato.cloud.metrics import Siblings
from sfumato.cloud.model_repository import Catalogue
from sfumato.cloud.server import ServerOptions, build_server, listen, run, tls_context, warn_if_open
from sfumato.errors import ServingError, SfumatoError
from sfumato.wire.tracing import SERVICE, start_exporting

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 120
_TICK_S = 0.2
_AGAIN_S = 1.0
"""Seconds between two starts of a replica that dies at once."""
_STARTS = 3
"""How often in a row a replica may die before it is ready."""


@dataclass(frozen=True)
class Replicas:
    """The number of replicas: between `least` and `most`, as load demands."""

    least: int = 1
    most: int = 1

    @classmethod
    def parse(cls, text: str) -> Replicas:
        """Parse "2" or "1-4".

        Raises:
            ServingError: it is neither.
        """
        given = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        least = int(given[1]) if given else 0
        most = int(given[2] or least) if given else 0
        if not 1 <= least <= most:
            raise ServingError(f"replicas are a number, or the least and the most, such as 2 or 1-4; got {text!r}")
        return cls(least, most)


def serve_replicas(
    open_models: Callable[[], Catalogue],
    count: int,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    log_as_json: bool = False,
    on_ready: Callable[[str], None] | None = None,
    **options: Unpack[ServerOptions],
) -> None:
    """Serve models in several processes until SIGTERM or SIGINT; the rest is as with `serve`, in the main thread.

    SIGHUP reloads the models of all. Limits apply to each process; `on_ready` is called once all are ready;
    `log_as_json` makes their logs JSON. `open_models` opens the models in each of `count` processes: it is pickled, so
    it has to be a module's function or a `partial`. `pages` cannot be used.

    Raises:
        ServingError: as for `serve`; or a process does not start, or this system cannot share a port.
    """
    if not hasattr(socket, "SO_REUSEPORT") or sys.platform == "win32":
        raise ServingError("this system cannot share a port between processes; serve with one, or --engine ray")
    limits = options.get("limits") or Limits()
    check_options(options)  # so that errors are raised once, and here
    tls_context(options.get("tls_cert"), options.get("tls_key"), options.get("client_ca"))
    listeners = _listeners(host, port, count, options)
    with tempfile.TemporaryDirectory(prefix="sfumato-replicas-") as folder:
        target = partial(
            _replica, open_models, host=host, folder=Path(folder), log_as_json=log_as_json, options=options
        )  # fmt: skip
        _Replicas(target, listeners, leave_s=limits.linger_s + limits.grace_s + 5).run(on_ready)


def _listeners(host: str, port: int, count: int, options: ServerOptions) -> list[socket.socket]:
    """Open a socket for each process: with one for all, the first to wake up would take every connection."""
    with listen(host, port) as alone:  # fails if anything listens there, even if it would share
        warn_if_open(alone, host, options)
        port = alone.getsockname()[1]
    with contextlib.ExitStack() as opened:
        found = [opened.enter_context(listen(host, port, share=True)) for _ in range(count)]
        opened.pop_all()
    return found


class _Replicas:
    """Starts, replaces and ends the processes.

    Their sockets stay open here, so connections for a process that has died wait for the next one.
    """

    def __init__(
        self, target: Callable[[int, socket.socket, Connection], None], listeners: list[socket.socket], leave_s: float
    ) -> None:
        self._target = target
        self._listeners = listeners
        self._leave_s = leave_s
        self._processes: dict[int, SpawnProcess] = {}
        self._ready: dict[int, Connection] = {}
        self._started_s: dict[int, float] = {}
        self._up: set[int] = set()
        self._failed: dict[int, int] = {}
        self._ends: list[int] = []

    def run(self, on_ready: Callable[[str], None] | None) -> None:
        """Start them, replace those that die, and end them on a signal."""

        def note(number: int, _: FrameType | None) -> None:
            self._ends.append(number)

        handlers: dict[int, Handler] = {signal.SIGINT: note, signal.SIGTERM: note}
        handlers[signal.SIGHUP] = lambda *_: self._send(signal.SIGHUP)
        with handled(handlers):
            try:
                for number in range(len(self._listeners)):
                    self._start(number)
                url = self._wait_until_ready()
                if url and on_ready is not None:
                    on_ready(url)
                while not self._ends:
                    time.sleep(_TICK_S)
                    self._replace_dead()
            finally:
                self._end()

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready[number], pipe = context.Pipe(duplex=False)
        self._up.discard(number)
        process = context.Process(
            target=self._target, args=(number, self._listeners[number], pipe), name=f"sfumato-{number}", daemon=True
        )
        # Ctrl-C and SIGHUP reach the whole group; a process that is just starting must not die of them.
        with pipe, handled({signal.SIGINT: signal.SIG_IGN, signal.SIGHUP: signal.SIG_IGN}):
            process.start()
        self._processes[number], self._started_s[number] = process, time.monotonic()

    def _wait_until_ready(self) -> str:
        """Return the URL once all are ready; "" if a signal came before."""
        url, deadline = "", time.monotonic() + _START_TIMEOUT_S
        for number, ready in self._ready.items():
            while not ready.poll(_TICK_S):
                if self._ends:
                    return ""
                if time.monotonic() > deadline:
                    raise ServingError(f"replica {number} did not start within {_START_TIMEOUT_S} s")
            try:
                url = ready.recv()
                self._up.add(number)
            except EOFError:
                raise ServingError(f"replica {number} did not start; the log says why") from None
        return url

    def _replace_dead(self) -> None:
        for number, process in list(self._processes.items()):
            if process.is_alive() or self._ends or time.monotonic() < self._started_s[number] + _AGAIN_S:
                continue
            self._failed[number] = 0 if self._was_ready(number) else self._failed.get(number, 0) + 1
            if self._failed[number] >= _STARTS:
                self._give_up(number)
                continue
            cause = f"exit status {process.exitcode}"
            if process.exitcode is not None and -process.exitcode in set(signal.Signals):
                cause = signal.Signals(-process.exitcode).name
            log.warning("replica %d died (%s); another one is started", number, cause)
            self._start(number)

    def _was_ready(self, number: int) -> bool:
        """Return whether a replica that has died had been ready before."""
        if number in self._up:
            return True
        try:
            return self._ready[number].poll() and bool(self._ready[number].recv())
        except EOFError:
            return False

    def _give_up(self, number: int) -> None:
        """Close its socket, so that the kernel gives connections to the others only."""
        log.error("replica %d did not start %d times; the others continue without it", number, _STARTS)
        self._listeners[number].close()
        del self._processes[number]
        if not self._processes:
            raise ServingError("no replica starts any more; the log says why")

    def _end(self) -> None:
        """Let all finish their requests. A further signal is passed on: then they leave at once."""
        self._send(signal.SIGTERM)
        for listener in self._listeners:  # they have their own while they take further connections
            listener.close()
        passed_on, deadline = len(self._ends), time.monotonic() + self._leave_s
        while any(process.is_alive() for process in self._processes.values()) and time.monotonic() < deadline:
            if len(self._ends) > passed_on:
                passed_on = len(self._ends)
                self._send(signal.SIGTERM)
            time.sleep(_TICK_S)
        for process in self._processes.values():
            process.kill()
            process.join()


def _replica(
    open_models: Callable[[], Catalogue],
    number: int,
    listener: socket.socket,
    pipe: Connection,
    *,
    host: str,
    folder: Path,
    log_as_json: bool,
    options: ServerOptions,
) -> None:
    """Run one process: the server, until its parent ends it or dies."""
    logs.configure(as_json=log_as_json)
    start_exporting(SERVICE)
    after_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        siblings = Siblings(folder, number)
        server = build_server(open_models(), listener, host, siblings=siblings, on_ready=pipe.send, **options)
    except (SfumatoError, OSError) as error:
        log.error("replica %d: %s", number, error)
        raise SystemExit(1) from None
    run(server, [listener])
