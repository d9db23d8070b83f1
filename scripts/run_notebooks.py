"""Run the notebooks in examples/notebooks from top to bottom and keep what they print and show: `make notebooks`.

    python -m scripts.run_notebooks [NAME ...]

What is kept is the same on every machine but for what training finds: without bars, colours, times, folders and the
estimates of how long a command takes here. Images get a palette of 256 colours, which keeps the files small.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 900
"""For one cell; a busy machine is slow."""
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_PLAIN = """import os, warnings
os.environ.update(TERM="dumb", PYTHONWARNINGS="ignore")
warnings.simplefilter("ignore")"""
"""Run first, and not kept: commands draw no bars and no colours, and no warning names a folder."""
_OF_THIS_MACHINE = re.compile(r"; about [^;\n]+ on this machine")


def executed(path: Path) -> dict[str, Any]:
    """Return a notebook with what its cells print and show here; the file stays as it is.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_PLAIN))
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # `!sfumato` is the command of this Python, whichever the shell would find.
    client.execute(env={**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])})
    number = 0
    for cell in cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
            cell.outputs = [_cleaned(output, number) for output in cell.outputs]
    notebook.update(cells=cells, metadata=_METADATA)
    found: dict[str, Any] = json.loads(nbformat.writes(notebook))
    return found


def _cleaned(output: Any, number: int) -> Any:
    """Remove what differs from machine to machine; `number` is the cell's."""
    if "execution_count" in output:
        output.execution_count = number
    if "text" in output:
        output.text = _OF_THIS_MACHINE.sub("", output.text.replace("\r\n", "\n"))
    for kind, content in output.get("data", {}).items():
        if kind == "image/png":
            output.data[kind] = _small(content)
    return output


def _small(png: str) -> str:
    """Reduce a PNG image, in base64, to 256 colours."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    for file in NOTEBOOKS:
        if sys.argv[1:] and file.stem not in sys.argv[1:]:
            continue
        print(file.stem, flush=True)
        file.write_text(json.dumps(executed(file), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
