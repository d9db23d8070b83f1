"""Reading a finished audit, and resuming one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.errors import AuditError, ResultsError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Beside, audit
from sfumato.lab.audit.setting import Scene
from sfumato.lab.runs.folders import read_json
from sfumato.progress import Progress, silent

AuditContent = dict[str, Any]
"""The content of an `audit.json`."""

_KEYS = {"best", "budget", "utility", "class_mean_mse", "verdict", "provenance"}


def findings(folder: Path) -> Path:
    """Return the file that says what an audit is of; it is there once the audit was begun."""
    return folder / "work" / "audit.json"


def read_audit(place: Path) -> AuditContent | None:
    """Read an `audit.json`; return None if there is no such file.

    Raises:
        AuditError: it is damaged or incomplete.
    """
    found = _read(place)
    if found is not None and not found.keys() >= _KEYS:
        raise AuditError(f"{place} is no complete audit; move it away to make it again")
    return found


def read_findings(folder: Path) -> dict[str, Any] | None:
    """Read what an audit is of; return None if it was not begun.

    Raises:
        AuditError: the file is damaged.
    """
    return _read(findings(folder))


def _read(place: Path) -> dict[str, Any] | None:
    try:
        return read_json(place)
    except ResultsError as error:
        raise AuditError(f"{error}; move it away to make the audit again") from error


def finish_audit(
    scene: Scene, budget: Budget, folder: Path, *, beside: Beside, device: torch.device, progress: Progress = silent
) -> AuditContent:
    """Make an audit, or resume one that was interrupted; see `sfumato.lab.audit.run.audit` for the arguments.

    Raises:
        AuditError: see `sfumato.lab.audit.run.audit`.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """

    def report(done: int, total: int, what: str, part: int, parts: int) -> None:
        progress("audit", done, total)
        progress(what, part, parts)

    resume = findings(folder).is_file()
    try:
        return audit(scene, budget, folder, beside=beside, resume=resume, device=device, progress=report)
    except AuditError as error:
        raise AuditError(f"{folder}: {error}; move it away to make it again") from error
