"""Read a finished audit, and resume one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.errors import AuditError, ResultsError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, audit
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.report.folder import render_audit
from sfumato.lab.runs.folders import read_json
from sfumato.progress import Progress, silent


def findings(folder: Path) -> Path:
    """Return the file that says what an audit is of; it is there once the audit was begun."""
    return folder / "work" / "audit.json"


def read_audit(place: Path) -> AuditResult | None:
    """Read an `audit.json`; return None if there is no such file.

    Raises:
        AuditError: it is damaged or incomplete.
    """
    if not place.exists():
        return None
    try:
        return AuditResult.read(place)
    except AuditError as error:
        raise AuditError(f"{error}; move it away to make the audit again") from error


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
    setting: AttackSetting,
    budget: Budget,
    folder: Path,
    *,
    comparison: Comparison,
    device: torch.device,
    progress: Progress = silent,
) -> AuditResult:
    """Make an audit and its report, or resume one that was interrupted.

    Args:
        setting: as `sfumato.lab.audit.run.audit` takes it, like all that follows.
        budget: of the attackers.
        folder: of the audit.
        comparison: what to compare with.
        device: where attackers are trained.
        progress: see `sfumato.progress.Progress`.

    Raises:
        AuditError: see `sfumato.lab.audit.run.audit`.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    resume = findings(folder).is_file()
    try:
        found = audit(setting, budget, folder, comparison=comparison, resume=resume, device=device, progress=progress)
        render_audit(setting, found, folder)
    except AuditError as error:
        raise AuditError(f"{folder}: {error}; move it away to make it again") from error
    return found
