"""Writes a reading kit: a page that loads nothing, for readers, and the key, which they must not see."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from sfumato.artifacts.files import whole_file, write_json
from sfumato.errors import AuditError
from sfumato.lab.audit.readings import Kit

PAGE, KEY = "reading-kit.html", "key.json"
_SHOWN = 160
"""How wide an image is on the page, in CSS pixels, at least."""


def write_kit(kit: Kit, folder: Path) -> None:
    """Write the page and the key into a folder, which is created.

    Raises:
        AuditError: there is a kit already, whose answers the new key would not fit, or the disk refuses.
    """
    if (folder / KEY).exists() or (folder / PAGE).exists():
        raise AuditError(f"{folder} holds a reading kit already; choose another folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / KEY, kit.key.model_dump(mode="json", by_alias=True))
        with whole_file(folder / PAGE) as partial:
            partial.write_text(render_kit(kit), encoding="utf-8")
    except OSError as error:
        raise AuditError(f"the reading kit cannot be written to {folder}: {error.strerror or error}") from error


def render_kit(kit: Kit) -> str:
    """Return the page as a string: images and the kit's number, nothing of the key."""
    questions = [
        {"shown": _png(shown), "candidates": [_png(image) for image in candidates]}
        for shown, candidates in zip(kit.shown, kit.candidates, strict=True)
    ]
    source = files("sfumato.lab.report").joinpath("reading_kit.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(source)
        .render(
            kit=kit.key.kit,
            count=len(questions),
            candidates=kit.key.candidates,
            width=max(_SHOWN, kit.shown.shape[3]),
            questions=Markup(json.dumps(questions)),
        )
    )


def _png(image: Tensor) -> str:
    """An image (3, H, W) uint8 as the base64 of a PNG without metadata."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
