"""The notebooks: what is kept of them is small and says nothing of a machine, and they run from top to bottom."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.site_pages import NOTEBOOKS, notebook_page

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
LARGEST_BYTES = 400_000
OF_A_MACHINE = re.compile(
    r"/(?:home|root|tmp|work|var|private|Users|opt|usr)/|site-packages|\x1b|\b\d\d:\d\d:\d\d\b"
    r"|\b20\d\d-\d\d-\d\d\b|on this machine|\b\d+ s: |Warning"
)
each_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def content(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read


def printed(notebook: dict[str, Any]) -> list[str]:
    """What each output of it says."""
    return ["".join(out["text"]) for cell in notebook["cells"] for out in cell.get("outputs", []) if "text" in out]


def kinds(notebook: dict[str, Any]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Each cell, and of what kind its outputs are."""
    return [
        (
            "".join(cell["source"]),
            [(out["output_type"], sorted(out.get("data", {}))) for out in cell.get("outputs", [])],
        )
        for cell in notebook["cells"]
    ]


def test_there_are_three():
    assert {file.stem for file in FILES} == {"ten-minutes", "audit-your-own", "read-a-frontier"}


@each_notebook
def test_what_is_kept_was_run_in_order_is_small_and_names_no_machine(file: Path) -> None:
    notebook = content(file)
    assert file.stat().st_size < LARGEST_BYTES
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}, "the version is this machine's"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert [text for text in printed(notebook) if OF_A_MACHINE.search(text)] == []
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) >= 2
    for output in shown:
        assert len(output["metadata"]["image/png"]["alt"]) > 20
        with Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))) as image:
            assert not image.info and np.asarray(image.convert("RGB")).std() > 10


@each_notebook
def test_a_page_of_the_site_has_all_of_it(file: Path) -> None:
    page, images = notebook_page(file)
    assert page.startswith("# ") and f"../../examples/notebooks/{file.name}" in page
    assert page.count("```") % 2 == 0 and ".ipynb)" not in page.replace(f"{file.name})", "", 1)
    assert images and all(page.count(f"]({name})") == 1 for name in images)
    for text in printed(content(file)):
        assert "".join(text.split()) in "".join(page.split())
    for link in re.findall(r"\]\((?!\.\./\.\./)([^)#:]+\.md)", page):
        source = file.parent / f"{Path(link).stem}.ipynb" if "/" not in link else NOTEBOOKS / "../../docs" / link[3:]
        assert source.exists(), link


def test_a_cell_becomes_a_block_with_what_it_printed_and_an_image(tmp_path: Path, monkeypatch: Any) -> None:
    stream = {"output_type": "stream", "name": "stdout", "text": ["one\n", "\n", "word " * 30 + "\n"]}
    image = {"output_type": "execute_result", "data": {"image/png": base64.b64encode(b"png").decode()}}
    image["metadata"] = {"image/png": {"alt": "a face"}}
    cells = [
        {"cell_type": "markdown", "source": ["# T\n", "[a](../../docs/how-to/audit.md#b) [c](other-one.ipynb)"]},
        {"cell_type": "code", "source": ["!sfumato demo"], "outputs": [stream]},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": [image]},
    ]
    file = tmp_path / "n.ipynb"
    file.write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr("scripts.site_pages.ROOT", tmp_path)
    page, images = notebook_page(file)
    wrapped = f"{('word ' * 22).strip()}\n{('word ' * 8).strip()}"
    assert page.split("\n\n") == [
        "# T\n[a](../how-to/audit.md#b) [c](other-one.md)",
        "[Download the notebook](../../n.ipynb) to run it yourself.",
        "```sh\n!sfumato demo\n```",
        "```text\none",
        f"{wrapped}\n```",
        "```python\nx = 1\nx\n```",
        "![a face](n-1.png)\n",
    ]
    assert images == {"n-1.png": b"png"}


@pytest.mark.long
@each_notebook
def test_it_runs_from_top_to_bottom(
    file: Path, tmp_path: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    from scripts.run_notebooks import executed

    for name in ("IPYTHONDIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    found = executed(file)
    assert kinds(found) == kinds(content(file)), "run `make notebooks`"
    assert [text for text in printed(found) if OF_A_MACHINE.search(text)] == []
    if file.stem == "read-a-frontier":  # nothing is trained in it
        assert printed(found) == printed(content(file)), "run `make notebooks`: results/audits has changed"
