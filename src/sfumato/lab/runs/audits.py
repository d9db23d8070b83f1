"""Going on with an audit that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Beside, Progress, audit
from sfumato.lab.audit.setting import Scene
from sfumato.errors import AuditError

Bars = Callable[[], AbstractContextManager[Progress]]
"""Makes something that shows progress while it is entered."""

_KEYS = {"best", "budget", "utility", "class_mean_mse", "verdict", "provenance"}


def findings(folder: Path) -> Path:
    """The file that says what an audit is of; there once it was begun."""
    return folder / "work" / "audit.json"


def check_complete(found: dict[str, Any], place: Path) -> None:
    """Asks whether the content of an audit's file is all there.

    Raises:
        AuditError: it is not.
    """
    if not found.keys() >= _KEYS:
        raise AuditError(f"{place} is no complete audit; move it away, then it is made again")


def finish_audit(
    scene: Scene, budget: Budget, folder: Path, *, beside: Beside, device: torch.device, bars: Bars
) -> dict[str, Any]:
    """Makes an audit, or goes on with one that was interrupted.

    Args:
        scene: as `sfumato.lab.audit.run.audit` takes it, like all that follows.
        budget: how hard the attackers try.
        folder: of the audit.
        beside: what to compare with.
        device: where attackers are trained.
        bars: see `Bars`.

    Returns:
        The content of `audit.json`.

    Raises:
        AuditError: see `sfumato.lab.audit.run.audit`.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    resume = findings(folder).is_file()
    with bars() as progress:
        try:
            return audit(scene, budget, folder, beside=beside, resume=resume, device=device, progress=progress)
        except AuditError as error:
            raise AuditError(f"{folder}: {error}; moved away, it is made again") from error
