"""How the points of a sweep are made: one after the other in this process, or by Ray Tune (`sfumato.lab.sweep.ray`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sfumato.errors import Interrupted, SfumatoError
from sfumato.lab.sweep.jobs import Engine, Job, Make, Say


def in_turn(jobs: Sequence[Job], make: Make, say: Say) -> dict[str, str]:
    """Makes one point after the other.

    Args:
        jobs: the points.
        make: see `Make`.
        say: see `Say`.

    Returns:
        What went wrong, by the point's name.

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
    """An engine that makes several points at once.

    Args:
        storage: folder of Ray Tune's own logs; on a cluster, like the points' folders, on a disk that all share.
        address: of a running cluster; None starts Ray on this machine alone, and ends it with the sweep.
        parallel: points at once, at most; None for as many as fit.
        cpus: processor cores for each.
        gpus: GPUs for each, also a share of one; None for one where there are any.

    Raises:
        SfumatoError: Ray is not installed.
    """
    # Ray reads these when it is imported: nothing is told to anybody, and without a cluster it keeps to the loopback.
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
