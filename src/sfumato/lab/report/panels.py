"""What an audit shows: the same images as each attacker reconstructed them, and the best attacker's extremes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.apps.panel import Caption, draw_panel
from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.result_store import Notebook
from sfumato.lab.audit.setting import Scene
from sfumato.lab.evaluation.measures import per_image
from sfumato.lab.report.html import Case, Images

PANEL = 12
CASES = 6


def showcase(scene: Scene, notebook: Notebook, found: dict[str, Any]) -> Images:
    """Gathers the report's images.

    Args:
        scene: the audit's.
        notebook: with what the attackers reconstructed.
        found: the content of `audit.json`.
    """
    by_attacker: dict[str, tuple[float, Tensor]] = {}
    for trial in found["trials"]:
        reconstructed = notebook.tensors(trial["key"]).get("reconstructed")
        if reconstructed is None or trial["status"] != "done":
            continue
        known = by_attacker.get(trial["attacker"])
        if known is None or trial["mse_compared"] < known[0]:
            by_attacker[trial["attacker"]] = trial["mse_compared"], reconstructed
    best_cases, worst_cases = _cases(scene, notebook, found["best"])
    shown = min(PANEL, len(scene.test))
    return Images(
        scene.test.images[:shown],
        preview(scene.observed(Threat.PAIRS, shown)),
        {name: reconstructed[:shown] for name, (_, reconstructed) in by_attacker.items()},
        best_cases,
        worst_cases,
    )


def save_panel(scene: Scene, notebook: Notebook, found: dict[str, Any], path: Path) -> None:
    """Draws original images, what travelled, and what the best attacker reconstructed; nothing if nobody finished.

    Args:
        scene: the audit's.
        notebook: with what the attackers reconstructed.
        found: the content of `audit.json`.
        path: of the PNG file.

    Raises:
        AuditError: the disk refuses.
    """
    best = found["best"]
    if best is None:
        return
    shown = min(PANEL, len(scene.test))
    rows = (
        ("original: stays on the device", scene.test.images[:shown]),
        (
            "obfuscated: the payload (each stretched to the visible range)",
            preview(scene.observed(Threat.PAIRS, shown)),
        ),
        (
            f"reconstructed by an attacker who came afterwards: {best['attacker']}, {best['threat']}; "
            f"{best['psnr_db']:.1f} dB, SSIM {best['ssim']:.2f}",
            notebook.tensors(best["key"])["reconstructed"][:shown],
        ),
    )
    panel = draw_panel(
        [(title, [image.permute(1, 2, 0).expand(-1, -1, 3).numpy() for image in part]) for title, part in rows],
        [Caption(scene.test.names[label]) for label in scene.test.labels[:shown].tolist()],
    )
    try:
        panel.save(path)
    except OSError as error:
        raise AuditError(f"the panel cannot be written to {path}: {error.strerror or error}") from error


def _cases(
    scene: Scene, notebook: Notebook, best: dict[str, Any] | None
) -> tuple[dict[str, list[Case]], dict[str, list[Case]]]:
    reconstructed = notebook.tensors(f"{best['key']}-all").get("reconstructed") if best else None
    if reconstructed is None:
        return {}, {}
    originals = scene.test.images[: len(reconstructed)]
    mse, ssim = per_image(reconstructed.float() / 255, originals)
    best_cases, worst_cases = {}, {}
    for name, values, rising in (("mse", mse, True), ("ssim", ssim, False)):
        order = values.argsort(descending=not rising)
        cases = [(originals[i], reconstructed[i], float(values[i])) for i in order.tolist()]
        best_cases[name], worst_cases[name] = cases[:CASES], cases[-CASES:]
    return best_cases, worst_cases


def preview(payload: Tensor) -> Tensor:
    """Makes the payload visible, each image stretched to the visible range on its own.

    Args:
        payload: (N, C, H, W) float32.

    Returns:
        (N, 3, H, W) uint8, or (N, 1, H, W) of the first channel if there are not three.
    """
    shown = payload if payload.shape[1] == 3 else payload[:, :1]
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    return as_bytes((shown - low) / (high - low).clamp_min(1e-6))


def as_bytes(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8, rounded; the shape stays."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
