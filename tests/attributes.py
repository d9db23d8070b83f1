"""A multi-label classifier and images for it: which of red, green and blue are bright, any number of them at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sfumato.artifacts.bundle import Bundle
from sfumato.lab.classifiers import Metadata, import_classifier

CLASSES = ("red", "green", "blue")
SIZE = 16
METADATA = Metadata((SIZE, SIZE), (0.5,) * 3, (0.25,) * 3, CLASSES, "bright", labelling="multi-label")


class Bright(nn.Module):
    """Logits 4 times the mean of each channel: above 0 where it is brighter than the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(4 * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Sure(Bright):
    """The same as probabilities, with the sigmoid that has to be left out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).sigmoid()


def present(count: int) -> NDArray[np.int64]:
    """Which channels of each image are bright, (N, 3): none, red, green, red and green, blue, ..."""
    return (np.arange(count)[:, None] >> np.arange(3)) & 1


def pixels(count: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8."""
    noise = np.random.default_rng(seed).integers(-40, 41, (count, SIZE, SIZE, 3))
    return (60 + 140 * present(count)[:, None, None] + noise).astype(np.uint8)


def save(folder: Path, count: int = 40) -> Path:
    """Image files, and `labels.csv` beside them with a column for each class, in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,blue,red,green,age"]
    for index, (image, (red, green, blue)) in enumerate(zip(pixels(count), present(count).tolist(), strict=True)):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
        lines.append(f"{index:02d}.png,{blue},{red},{green},{20 + index % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def save_classifier(folder: Path) -> Bundle:
    return import_classifier("attributes:Bright", folder, METADATA)
