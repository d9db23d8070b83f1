"""Finishes audits: made, or resumed where they were interrupted."""

from __future__ import annotations

from pathlib import Path

import torch

from sfumato.errors import AuditError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, audit
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.report.folder import render_audit
from sfumato.progress import Progress, silent


def findings(folder: Path) -> Path:
    """The file that says what an audit is of; there once it was begun."""
    return folder / "work" / "audit.json"


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
        raise AuditError(f"{folder}: {error}; moved away, it is made again") from error
    return found
