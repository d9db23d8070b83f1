"""Where a number comes from: commit, versions, machine. Written with every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import sfumato
from sfumato.artifacts.records import Provenance

_LIBRARIES = ("torch", "lightning", "onnx", "onnxruntime", "numpy", "pillow")


def provenance(**facts: Any) -> Provenance:
    """Return what runs now, on what.

    Args:
        **facts: what only the caller knows: seed, epochs, how many images, ...
    """
    return Provenance.from_json(
        {
            "sfumato": sfumato.__version__,
            "commit": COMMIT,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "libraries": dict(_libraries()),
            "machine": {
                "cpu": cpu_name(),
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                "system": platform.system(),
                "architecture": platform.machine(),
            },
            **facts,
        }
    )


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _libraries() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _commit() -> str | None:
    """Return the commit of the package's own checkout, marked if files differ; None if it is installed."""
    folder = Path(__file__).resolve().parent
    if not (folder.parents[2] / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


# Read when the program starts: a long run must state the code that ran, not what was checked out since.
COMMIT = _commit()
