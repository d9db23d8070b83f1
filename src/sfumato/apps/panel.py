"""Image panels: rows of small images with a title each and a caption under every column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP, _TEXT = 12, 6, 14
_INK, _PAPER, _WRONG = (32, 33, 36), (255, 255, 255), (179, 38, 30)
_NOTE, _BLANK = (95, 99, 104), (241, 243, 244)


@dataclass(frozen=True)
class Caption:
    """The text under a column, red if not `good`, and a note in grey below it."""

    text: str
    good: bool = True
    note: str = ""


def draw_panel(
    rows: Sequence[tuple[str, Sequence[npt.NDArray[np.uint8] | str]]], captions: Sequence[Caption], *, side: int = 96
) -> Image.Image:
    """Draw a panel.

    Args:
        rows: title and images (H, W, 3) uint8; all rows equally long. Text in place of an image says why there is
            none.
        captions: one per column.
        side: of each image, in pixels; enlarged ones show their pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: rows or captions differ in length.
    """
    if any(len(images) != len(captions) for _, images in rows):
        raise ValueError(f"rows of {[len(images) for _, images in rows]} images for {len(captions)} captions")
    font = ImageFont.load_default(_TEXT)
    title_height = _TEXT + 8
    row_height = title_height + side + _GAP
    width = 2 * _MARGIN + len(captions) * (side + _GAP) - _GAP
    lines = 2 if any(caption.note for caption in captions) else 1
    sheet = Image.new("RGB", (width, 2 * _MARGIN + len(rows) * row_height + lines * (_TEXT + 4)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (title, images) in enumerate(rows):
        top = _MARGIN + number * row_height
        draw.text((_MARGIN, top), title, fill=_INK, font=font)
        for column, pixels in enumerate(images):
            left = _MARGIN + column * (side + _GAP)
            below = top + title_height
            if isinstance(pixels, str):
                draw.rectangle((left, below, left + side - 1, below + side - 1), fill=_BLANK)
                middle = (left + side / 2, below + side / 2)
                draw.multiline_text(middle, pixels, fill=_NOTE, font=font, anchor="mm", align="center")
                continue
            enlarging = side >= max(pixels.shape[:2])
            how = Image.Resampling.NEAREST if enlarging else Image.Resampling.BILINEAR
            sheet.paste(Image.fromarray(pixels).resize((side, side), how), (left, below))
    for column, caption in enumerate(captions):
        left = _MARGIN + column * (side + _GAP)
        place = (left, _MARGIN + len(rows) * row_height)
        draw.text(place, caption.text, fill=_INK if caption.good else _WRONG, font=font)
        draw.text((left, place[1] + _TEXT + 4), caption.note, fill=_NOTE, font=font)
    return sheet
