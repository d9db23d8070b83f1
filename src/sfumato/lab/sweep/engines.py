"""Engines that make the points of a sweep: in this process, or on Ray Tune (`sfumato.lab.sweep.ray`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sfumato.errors import Interrupted, SfumatoError
from sfumato.lab.sweep.jobs import Engine, Job, Make
from sfumato.progress import Say


def in_turn(jobs: Sequence[Job], make: Make, say: Say) -> dict[str, str]:
    """Make one point after the other; see `Engine`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        say(f"[{number}/{len(jobs)}] {job.name}, in {job.folder}")
        try:
            make(job)
        except Interrupted:
            raise
        except SfumatoError as error:
            failed[job.name] = str(error)
            say(f"{job.name} failed: {error}")
    return failed


def on_ray(
    storage: Path,
    *,
    address: str | None = None,
    parallel: int | None = None,
    cpus: float = 1,
    gpus: float | None = None,
) -> Engine:
    """Return an engine that makes several points at once; see `sfumato.lab.sweep.ray.RayEngine` for the arguments.

    Raises:
        SfumatoError: Ray is not installed.
    """
    # Ray reads these when it is imported: no usage statistics, and without a cluster the loopback alone.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        from sfumato.lab.sweep.ray import RayEngine
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sfumato"):
            raise
        raise SfumatoError(f"{error.name} is not installed; run: pip install 'sfumato[ray]'") from error
    return RayEngine(storage, address=address, parallel=parallel, cpus=cpus, gpus=gpus)
