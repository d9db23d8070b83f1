"""Videos that are made for a test, where PyAV is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write_video(path: Path, *, images: int = 30, rotation: int = 0) -> Path:
    """Ten images a second, 64 x 48, all of one brightness that rises by 8, white in the upper left corner."""
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(images):
            pixels = np.full((48, 64, 3), 8 * (number % 25), np.uint8)
            pixels[:16, :16] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
