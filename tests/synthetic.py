"""Images made up on the spot: each class has its own colour, so that a network can learn something from a few."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.lab.data import ImageSet

CLASSES = ("apple", "banana", "cherry", "date")
_COLOURS = np.array([[200, 60, 60], [220, 210, 80], [90, 20, 60], [110, 80, 40]])


def pixels(count: int, *, size: tuple[int, int] = (32, 32), seed: int = 0) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8; image i is of class i modulo 4."""
    noise = np.random.default_rng(seed).integers(-50, 51, (count, *size, 3))
    return (_COLOURS[np.arange(count) % len(CLASSES)][:, None, None] + noise).clip(0, 255).astype(np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def image_set(count: int, *, size: tuple[int, int] = (32, 32), seed: int = 0) -> ImageSet:
    """The same images as a loaded data set."""
    images = torch.from_numpy(pixels(count, size=size, seed=seed).transpose(0, 3, 1, 2).copy())
    return ImageSet(images, torch.arange(count) % len(CLASSES), CLASSES, "synthetic", f"hash-{count}-{seed}")


def save_folder(
    folder: Path,
    *,
    train: int = 16,
    test: int = 8,
    size: tuple[int, int] = (32, 32),
    names: tuple[str, ...] = CLASSES,
) -> Path:
    """The same images as PNG files: `train/apple/00.png` and so on."""
    for split, count in (("train", train), ("test", test)):
        for index, image in enumerate(pixels(count, size=size, seed=len(split))):
            file = folder / split / names[index % len(CLASSES)] / f"{index:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
    return folder
