"""Renders a finished audit into its folder."""

from __future__ import annotations

from pathlib import Path

from sfumato.lab.audit.result_store import stored_tensors
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.report.html import write_report
from sfumato.lab.report.panels import save_panel, showcase


def render_audit(setting: AttackSetting, audit: AuditResult, folder: Path) -> None:
    """Write `audit.html`, and `panel.png` if an attacker finished.

    Args:
        setting: as the audit was given it.
        audit: finished.
        folder: of the audit, with what the attackers reconstructed in `work/`.

    Raises:
        AuditError: the disk refuses.
    """
    work = folder / "work"
    images = showcase(setting, audit, work)
    write_report(audit, images, folder / "audit.html")
    if audit.best is not None:
        captions = [setting.test.names[label] for label in setting.test.labels[: len(images.originals)].tolist()]
        reconstructed = stored_tensors(work, audit.best.key)["reconstructed"]
        save_panel(images, audit.best, reconstructed, captions, folder / "panel.png")
