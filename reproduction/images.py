"""The images of tables 2 and 5: original, obfuscated, and reconstructed by two kinds of attacker."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reproduction.audits import make_audit, reconstructed_by_best, setting_of
from reproduction.lab import Lab
from reproduction.plan import Item
from reproduction.schema import Panel, Table2, Table5
from sfumato.apps.panel import Caption, draw_panel
from sfumato.artifacts.bundle import DEOBFUSCATOR_ONNX
from sfumato.artifacts.lab_files import lab_file
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.errors import ResultsError
from sfumato.lab.audit.trials import as_bytes
from sfumato.lab.report.panels import preview

COLUMNS = 10
_SIDE = 64


def table_2(lab: Lab, folder: Path) -> Table2:
    """Show the first test images, not selected, under the first obfuscator; write the PNG file into a folder."""
    return Table2(panels=(_panel(lab, lab.plan.obfuscators[0], 0, folder / f"{lab.plan.size}-table2.png"),))


def table_5(lab: Lab, folder: Path) -> Table5:
    """Show the test images that follow, under each obfuscator; write the PNG files into a folder."""
    files = {item: folder / f"{lab.plan.size}-table5-{item.name}.png" for item in lab.plan.obfuscators}
    return Table5(panels=tuple(_panel(lab, item, COLUMNS, file) for item, file in files.items()))


def _panel(lab: Lab, item: Item, first: int, path: Path) -> Panel:
    first = min(first, max(0, len(lab.test) - COLUMNS))
    shown = slice(first, first + COLUMNS)
    images = lab.test.images[shown]
    best = make_audit(lab, item).summary
    payload = setting_of(lab, item).target.payload(images.float() / 255)
    rows: list[tuple[str, Tensor]] = [
        ("original", images),
        ("obfuscated: the payload, each image stretched to the visible range", preview(payload)),
        ("reconstructed by the jointly trained deobfuscator", _joint(lab, item, payload)),
        (
            f"reconstructed by the best adaptive attacker: {best.attacker if best else ''}",
            reconstructed_by_best(lab, item, shown.stop)[shown],
        ),
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
    return Panel(
        file=path.name,
        obfuscator=item.name,
        first=first,
        count=len(images),
        joint=lab.figures(item).joint,
        adaptive=best,
    )


def _joint(lab: Lab, item: Item, payload: Tensor) -> Tensor:
    reconstruct = OnnxFunction(lab_file(lab.bundle(item), DEOBFUSCATOR_ONNX))
    return as_bytes(torch.from_numpy(reconstruct(payload.numpy())))
