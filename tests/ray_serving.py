"""`sfumato serve --engine ray` as a process of its own, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra: pip install 'sfumato[ray]'")
_STOP_TIMEOUT_S = 90


@contextmanager
def on_ray(*arguments: object, **environment: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """What the command says once it serves, and its process; it is told to stop, and has to end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato", "serve", *map(str, arguments), "--engine", "ray", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    try:
        yield json.loads(line), process
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=_STOP_TIMEOUT_S)
    assert process.returncode == 0, err
    assert not out or "raylet" in out, out  # Ray itself tells of a worker that was killed
    assert "Traceback" not in err
