"""What the lab writes, onto a disk that fills on the way: the old file stays, whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from fakes import fake_audit, fake_images, point
from full_disk import check_whole_or_old, disk_with_room_for
from sfumato.errors import AuditError
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.export import executorch
from sfumato.lab.export.onnx import save_weights
from sfumato.lab.report.attribute_table import BEGIN, END, write_between
from sfumato.lab.report.frontier import save_frontier_png
from sfumato.lab.report.html import write_report
from sfumato.lab.report.panels import save_panel


@pytest.mark.parametrize("name", ["report", "audit", "panel", "frontier", "weights", "program"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    audit, images, file = fake_audit(), fake_images(), tmp_path / "file"
    assert audit.best is not None
    reconstructed = torch.zeros_like(images.originals)
    captions = ["a"] * len(images.originals)
    points = [point("local", 0.5, 0.1, "local"), point("identity", 0.9, 0.9, "identity")]
    write = {
        "report": partial(write_report, audit, images, file),
        "audit": partial(audit.write, file),
        "panel": partial(save_panel, images, audit.best, reconstructed, captions, file),
        "frontier": partial(save_frontier_png, points, file),
        "weights": partial(save_weights, torch.nn.Linear(50, 50), file),
        "program": partial(executorch._write, file, bytes(1000)),
    }[name]
    check_whole_or_old(file, write, steps=1 if name == "report" else 3)  # seconds, each time


def test_a_full_disk_leaves_the_page_that_a_table_goes_into(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text := f"before\n{BEGIN}\n{END}\nafter" + "x" * 1000)
    for room in (0, 100, 900):
        with disk_with_room_for(room), pytest.raises(AuditError, match="cannot be changed"):
            write_between(page, "| table |")
        assert page.read_text() == text and list(tmp_path.iterdir()) == [page]


def test_a_full_disk_leaves_the_images_that_an_audit_kept(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "work", {}, resume=False, overwrite=False)
    kept = torch.ones(2, 3, 32, 32, dtype=torch.uint8)
    check_whole_or_old(store.folder / "best.safetensors", lambda: store.keep("best", kept), steps=3)
