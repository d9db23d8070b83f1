"""`sfumato serve` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra: pip install 'sfumato[ray]'")


@contextmanager
def serving(
    *arguments: object, stop_s: float = 30, said_of_itself: list[str] | None = None, **environment: str
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Yield what the command prints once it serves, and its process, which is then stopped and has to end well.

    Args:
        arguments: of `sfumato serve`.
        stop_s: seconds that it may take to end.
        said_of_itself: gets the lines of its log as they come.
        environment: more variables.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato", "serve", *map(str, arguments), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    heard = [] if said_of_itself is None else said_of_itself
    listener = threading.Thread(target=lambda: heard.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    listener.start()
    try:
        yield json.loads(line), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            listener.join()
        out, err = process.stdout.read(), "".join(heard)
    assert process.returncode == 0, err
    assert not out or "raylet" in out, out  # Ray itself tells of a worker that was killed
    assert "Traceback" not in err, err


@contextmanager
def on_ray(*arguments: object, **environment: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """The same with `--engine ray`."""
    with serving(*arguments, "--engine", "ray", stop_s=90, **environment) as served:
        yield served


def children_of(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    with suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found += [child, *children_of(child)]
    return found


def named(pids: list[int], name: str) -> list[int]:
    """Those of them whose command line has the name in it."""
    found = []
    for pid in pids:
        with suppress(OSError):  # it has just ended
            if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
    return found
