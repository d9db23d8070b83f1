"""The images of tables 2 and 5: original, obfuscated, and what two kinds of attacker reconstructed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduction.audits import make_audit, reconstructed_by_best, setting_of, summary
from reproduction.lab import Lab
from reproduction.plan import Item
from sfumato.apps.panel import Caption, draw_panel
from sfumato.artifacts.bundle import DEOBFUSCATOR_ONNX
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.errors import ResultsError
from sfumato.lab.audit.trials import as_bytes
from sfumato.lab.report.panels import preview

COLUMNS = 10
_SIDE = 64


def table_2(lab: Lab, folder: Path) -> dict[str, Any]:
    """The first test images, not chosen, under the first obfuscator.

    Args:
        lab: the lab.
        folder: that the PNG file is written into.
    """
    return {"images": [_panel(lab, lab.plan.obfuscators[0], 0, folder / f"{lab.plan.size}-table2.png")]}


def table_5(lab: Lab, folder: Path) -> dict[str, Any]:
    """The test images that follow, under each obfuscator.

    Args:
        lab: the lab.
        folder: that the PNG files are written into.
    """
    return {
        "images": [
            _panel(lab, item, COLUMNS, folder / f"{lab.plan.size}-table5-{item.name}.png")
            for item in lab.plan.obfuscators
        ]
    }


def _panel(lab: Lab, item: Item, first: int, path: Path) -> dict[str, Any]:
    first = min(first, max(0, len(lab.test) - COLUMNS))
    shown = slice(first, first + COLUMNS)
    images = lab.test.images[shown]
    figures, best = lab.figures(item), summary(make_audit(lab, item))
    later = reconstructed_by_best(lab, item, shown.stop)[shown]
    payload = setting_of(lab, item).target.payload(images.float() / 255)
    rows: list[tuple[str, Tensor]] = [
        ("original", images),
        ("obfuscated: the payload, each stretched to the visible range", preview(payload)),
        ("reconstructed by the jointly trained deobfuscator", _joint(lab, item, payload)),
        (f"reconstructed by an attacker who came afterwards: {best['attacker'] if best else ''}", later),
    ]
    panel = draw_panel(
        [(title, [image.permute(1, 2, 0).numpy() for image in part]) for title, part in rows],
        [Caption(lab.test.names[label]) for label in lab.test.labels[shown].tolist()],
        side=_SIDE,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        panel.save(path, optimize=True)
    except OSError as error:
        raise ResultsError(f"the panel cannot be written to {path}: {error.strerror or error}") from error
    joint = {key: figures.get(f"joint_deobfuscator_{key}") for key in ("mse", "psnr_db", "ssim")}
    return {
        "file": path.name,
        "obfuscator": item.name,
        "first": first,
        "count": len(images),
        "joint": {**joint, "test_images": figures["test_images"]},
        "later": best,
    }


def _joint(lab: Lab, item: Item, payload: Tensor) -> Tensor:
    reconstruct = OnnxFunction(lab.bundle(item).file(DEOBFUSCATOR_ONNX))
    return as_bytes(torch.from_numpy(reconstruct(payload.numpy())))
