"""Images of another kind, made from nothing: dead leaves, discs and rectangles that hide one another.

Source: Lee, Mumford and Huang 2001, section 2; as training images: Baradad et al. 2021, section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SHAPES = 60
_SMALLEST = 0.04


def dead_leaves(count: int, height: int, width: int, *, seed: int) -> Tensor:
    """Make images (count, 3, height, width) uint8."""
    random = np.random.default_rng(seed)
    images = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        # Radii fall as r^-3, so that every scale covers the same share of the image; large ones first.
        radii = np.sort(max(height, width) * _SMALLEST / np.sqrt(random.uniform(0.002, 1.0, SHAPES)))[::-1]
        places = random.uniform(0, 1, (SHAPES, 2)) * (width, height)
        shapes = random.uniform(0.5, 1.5, (SHAPES, 2))
        colours = random.integers(0, 256, (SHAPES, 3))
        for radius, (x, y), (across, down), colour in zip(radii, places, shapes, colours, strict=True):
            box = (x - radius * across, y - radius * down, x + radius * across, y + radius * down)
            (draw.ellipse if across > 1 else draw.rectangle)(box, fill=tuple(colour.tolist()))
        images[index] = np.asarray(image)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
