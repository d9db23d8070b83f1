"""What ships with sfumato: a classifier, two obfuscators for it, and a few real images to try them on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfumato.errors import BundleError

_HERE = Path(__file__).resolve().parent
CLASSIFIER = "cifar10-resnet20"
SHEET = _HERE / "cifar10-test-sheet.png"
SHEET_LABELS = _HERE / "cifar10-test-sheet.json"


@dataclass(frozen=True)
class Sample:
    """A shipped image.

    Attributes:
        name: such as "test-0007": its place in the CIFAR-10 test split.
        pixels: (32, 32, 3) uint8, RGB.
        label: the true class.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    label: str


def classifier_bundle() -> Path:
    """Return the folder of the shipped classifier's bundle."""
    return _existing(CLASSIFIER)


def obfuscator_bundle() -> Path:
    """Return the folder of the default obfuscator for the shipped classifier: a code of a few bits, with a gate."""
    return _existing("cifar10-resnet20-sketch")


def papers_obfuscator_bundle() -> Path:
    """Return the folder of the paper's obfuscator for the same classifier, for comparison."""
    return _existing("cifar10-resnet20-obfuscator")


def is_shipped(files: Mapping[str, str]) -> bool:
    """Whether an obfuscator's bundle, given the SHA-256 of its files, is one of these, or a copy of it."""
    folders = (obfuscator_bundle(), papers_obfuscator_bundle())
    return any(json.loads((one / "bundle.json").read_text(encoding="utf-8"))["files"] == files for one in folders)


def samples() -> list[Sample]:
    """Return the shipped images: the first ones of the CIFAR-10 test split, not selected."""
    with Image.open(SHEET) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    labels = json.loads(SHEET_LABELS.read_text(encoding="utf-8"))["labels"]
    side = 32
    rows = pixels.reshape(-1, side, pixels.shape[1] // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return [Sample(f"test-{index:04d}", rows[index].copy(), label) for index, label in enumerate(labels)]


def _existing(name: str) -> Path:
    if not (_HERE / name).is_dir():
        raise BundleError(f"this installation lacks {name}; install sfumato again, or give a bundle of your own")
    return _HERE / name
