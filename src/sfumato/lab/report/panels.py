"""What an audit shows: the same images as each attacker reconstructed them, and the best attacker's extremes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sfumato.apps.panel import Caption, draw_panel
from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.result_store import stored_tensors
from sfumato.lab.audit.schema import AuditResult, DoneTrial
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.trials import PANEL, as_bytes
from sfumato.lab.evaluation.measures import per_image

CASES = 6

Case = tuple[Tensor, Tensor, float]
"""Original (3, H, W) uint8, reconstructed (3, H, W) uint8, and the measure's value for this image."""


@dataclass(frozen=True)
class Images:
    """What a report shows.

    Attributes:
        originals: (K, 3, H, W) uint8.
        payload_preview: (K, 1 or 3, H', W') uint8, the payload for them, made visible.
        by_attacker: an attacker's name, as in the trials -> its best reconstruction of them, (K, 3, H, W) uint8.
        best_cases: measure ("mse", "ssim") -> the test images that were reconstructed best.
        worst_cases: measure -> the test images that were reconstructed worst.
    """

    originals: Tensor
    payload_preview: Tensor
    by_attacker: dict[str, Tensor]
    best_cases: dict[str, list[Case]] = field(default_factory=dict)
    worst_cases: dict[str, list[Case]] = field(default_factory=dict)


def showcase(setting: AttackSetting, audit: AuditResult, work: Path) -> Images:
    """Gather the report's images.

    Args:
        setting: the audit's.
        audit: finished.
        work: folder with what the attackers reconstructed.
    """
    shown = min(PANEL, len(setting.test))
    best: dict[str, DoneTrial] = {}
    for trial in audit.done:
        if trial.attacker not in best or trial.mse_compared < best[trial.attacker].mse_compared:
            best[trial.attacker] = trial
    kept = {name: stored_tensors(work, trial.key).get("reconstructed") for name, trial in best.items()}
    return Images(
        setting.test.images[:shown],
        preview(setting.observed(Threat.PAIRS, shown)),
        {name: reconstructed[:shown] for name, reconstructed in kept.items() if reconstructed is not None},
        *_cases(setting, audit.best, work),
    )


def save_panel(images: Images, best: DoneTrial, reconstructed: Tensor, captions: list[str], path: Path) -> None:
    """Draw original images, the payload, and what the best attacker reconstructed.

    Args:
        images: of the report.
        best: the best attacker's trial.
        reconstructed: (at least K, 3, H, W) uint8, by the best attacker.
        captions: class names of the images.
        path: of the PNG file.

    Raises:
        AuditError: the disk refuses.
    """
    title = (
        f"reconstructed by an attacker trained after the obfuscator was fixed: {best.attacker}, {best.threat}; "
        f"{best.psnr_db:.1f} dB, SSIM {best.ssim:.2f}"
    )
    rows = (
        ("original: stays on the device", images.originals),
        ("obfuscated: the payload (each stretched to the visible range)", images.payload_preview),
        (title, reconstructed[: len(images.originals)]),
    )
    panel = draw_panel(
        [(title, [image.permute(1, 2, 0).expand(-1, -1, 3).numpy() for image in part]) for title, part in rows],
        [Caption(caption) for caption in captions],
    )
    try:
        panel.save(path)
    except OSError as error:
        raise AuditError(f"the panel cannot be written to {path}: {error.strerror or error}") from error


def _cases(
    setting: AttackSetting, best: DoneTrial | None, work: Path
) -> tuple[dict[str, list[Case]], dict[str, list[Case]]]:
    reconstructed = stored_tensors(work, f"{best.key}-all").get("reconstructed") if best else None
    if reconstructed is None:
        return {}, {}
    originals = setting.test.images[: len(reconstructed)]
    mse, ssim = per_image(reconstructed.float() / 255, originals)
    best_cases, worst_cases = {}, {}
    for name, values, rising in (("mse", mse, True), ("ssim", ssim, False)):
        order = values.argsort(descending=not rising)
        cases = [(originals[i], reconstructed[i], float(values[i])) for i in order.tolist()]
        best_cases[name], worst_cases[name] = cases[:CASES], cases[-CASES:]
    return best_cases, worst_cases


def preview(payload: Tensor) -> Tensor:
    """Make the payload visible, each image stretched to the visible range on its own.

    Args:
        payload: (N, C, H, W) float32.

    Returns:
        (N, 3, H, W) uint8, or (N, 1, H, W) of the first channel if there are not three.
    """
    shown = payload if payload.shape[1] == 3 else payload[:, :1]
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    return as_bytes((shown - low) / (high - low).clamp_min(1e-6))
