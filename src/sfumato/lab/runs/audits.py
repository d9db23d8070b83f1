"""Read a finished audit, and resume one that was interrupted."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel

from sfumato.errors import AuditError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.run import Comparison, audit
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.evaluation.results import as_type, read_object
from sfumato.lab.report.html import render_audit
from sfumato.progress import Progress, silent

_AGAIN = "move it away to make the audit again"


class Begun(BaseModel):
    """What an audit that was begun is of: its fingerprints, as far as they are known.

    Attributes:
        obfuscator: its name and its fingerprint.
        classifier: what it is for.
        local: the on-device baseline.
        budget: the attackers' whole budget, in words.
    """

    obfuscator: tuple[str, str] | None = None
    classifier: str | None = None
    local: str | None = None
    budget: str | None = None


def findings(folder: Path) -> Path:
    """Return the file that says what an audit is of; it is there once the audit was begun."""
    return folder / "work" / "audit.json"


def read_begun(folder: Path) -> Begun | None:
    """Read what an audit is of; return None if it was not begun.

    Raises:
        AuditError: the file is damaged.
    """
    found = read_object(findings(folder), AuditError)
    return None if found is None else as_type(Begun, found, f"{findings(folder)}: {_AGAIN}", AuditError)


def read_audit(place: Path) -> AuditResult | None:
    """Read an `audit.json`; return None if there is no such file.

    Raises:
        AuditError: it is damaged or incomplete.
    """
    try:
        return AuditResult.read(place) if place.exists() else None
    except AuditError as error:
        raise AuditError(f"{error}; {_AGAIN}") from error


def finish_audit(
    setting: AttackSetting,
    budget: Budget,
    folder: Path,
    *,
    comparison: Comparison,
    device: torch.device,
    progress: Progress = silent,
) -> AuditResult:
    """Make an audit and its report, or resume one that was interrupted; see `sfumato.lab.audit.run.audit`.

    Raises:
        AuditError: see there.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    resume = findings(folder).is_file()
    try:
        found = audit(setting, budget, folder, comparison=comparison, resume=resume, device=device, progress=progress)
        render_audit(setting, found, folder)
    except AuditError as error:
        raise AuditError(f"{folder}: {error}; {_AGAIN}") from error
    return found
