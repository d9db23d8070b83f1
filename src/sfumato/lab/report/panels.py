"""What an audit shows: the same images as each attacker reconstructed them, and the best attacker's extremes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.apps.panel import Caption, draw_panel
from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.result_store import stored_images
from sfumato.lab.audit.schema import AuditResult, DoneTrial
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.trials import PANEL, as_bytes
from sfumato.lab.evaluation.measures import per_image

CASES = 6


class Case(NamedTuple):
    """A test image and its reconstruction, (2, 3, H, W) uint8, with its figure in words."""

    pair: Tensor
    figure: str


@dataclass(frozen=True)
class Images:
    """What a report shows.

    Attributes:
        originals: (K, 3, H, W) uint8.
        payload_preview: (K, 1 or 3, H', W') uint8, the payload for them, made visible.
        by_attacker: an attacker's name, as in the trials -> its best reconstruction of them, (K, 3, H, W) uint8.
        cases: title -> the test images that the best attacker reconstructed best, and worst.
    """

    originals: Tensor
    payload_preview: Tensor
    by_attacker: dict[str, Tensor]
    cases: dict[str, list[Case]] = field(default_factory=dict)


def showcase(setting: AttackSetting, audit: AuditResult, work: Path) -> Images:
    """Gather the report's images; `work` is the folder with what the attackers reconstructed."""
    shown = min(PANEL, len(setting.test))
    best: dict[str, DoneTrial] = {}
    for trial in audit.done:
        if trial.attacker not in best or trial.mse_compared < best[trial.attacker].mse_compared:
            best[trial.attacker] = trial
    kept = {name: stored_images(work, trial.key) for name, trial in best.items()}
    return Images(
        setting.test.images[:shown],
        preview(setting.observed(Threat.PAIRS, shown)),
        {name: reconstructed[:shown] for name, reconstructed in kept.items() if reconstructed is not None},
        _cases(setting.test.images, stored_images(work, f"{audit.best.key}-all") if audit.best else None),
    )


def _cases(originals: Tensor, reconstructed: Tensor | None) -> dict[str, list[Case]]:
    if reconstructed is None:
        return {}
    originals = originals[: len(reconstructed)]
    mse, ssim = per_image(reconstructed.float() / 255, originals)
    found: dict[str, list[Case]] = {}
    for end in ("best", "worst"):
        for name, values, digits, order in (("MSE", mse, 4, mse.argsort()), ("SSIM", ssim, 3, ssim.argsort().flip(0))):
            chosen = order[:CASES] if end == "best" else order[-CASES:]
            found[f"Reconstructed {end}, by {name}"] = [
                Case(torch.stack([originals[i], reconstructed[i]]), f"{name} {float(values[i]):.{digits}f}")
                for i in chosen.tolist()
            ]
    return found


def save_panel(images: Images, best: DoneTrial, reconstructed: Tensor, captions: list[str], path: Path) -> None:
    """Draw original images with their class names, the payload, and what the best attacker reconstructed of them.

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
        with whole_file(path) as partial:
            panel.save(partial, "PNG")
    except OSError as error:
        raise AuditError(f"the panel cannot be written to {path}: {error.strerror or error}") from error


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
