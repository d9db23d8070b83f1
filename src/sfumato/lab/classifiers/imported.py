"""A classifier from elsewhere before it is a bundle, and what its user adds to what it says about itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import ClassifierError


@dataclass(frozen=True)
class UserMetadata:
    """A user's description of a classifier. It takes precedence over the classifier's own; None leaves that unchanged.

    Attributes:
        size: (height, width) of its input, in pixels.
        mean: per RGB channel, on the [0, 1] scale.
        std: likewise.
        labels: one name per class, in the order of its outputs.
        name: its name at a server.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: tuple[str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True)
class ImportedClassifier:
    """A classifier from elsewhere, with its own metadata.

    Attributes:
        origin: which kind of source it came from, for users and for the bundle.
        name: its name at a server, unless the user chooses another.
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes), in evaluation mode on the CPU; None if
            there is only an ONNX file.
        onnx: the ONNX file, served unchanged; None if it has to be exported.
        size: (height, width) of its input; None if unknown.
        mean: per RGB channel, on the [0, 1] scale; None if unknown.
        std: likewise.
        labels: one name per class; None if it has none.
        notes: what users should know, one sentence each.
        facts: goes into the bundle's recipe.
    """

    origin: str
    name: str
    net: nn.Module | None = None
    onnx: Path | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def preprocessing(self, metadata: UserMetadata) -> Preprocessing:
        """Return how an image becomes its input.

        Raises:
            ClassifierError: neither it nor the user says so.
        """
        size, mean, std = metadata.size or self.size, metadata.mean or self.mean, metadata.std or self.std
        if size is None or mean is None or std is None:
            missing = [flag for flag, value in (("--size", size), ("--mean", mean), ("--std", std)) if value is None]
            raise ClassifierError(
                f"{self.origin} does not say how an image becomes its input: give {', '.join(missing)} "
                "(--size 224x224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225, or --mean 0,0,0 --std 1,1,1 if it "
                "takes values in [0, 1])"
            )
        return Preprocessing(*size, mean, std)


def plain_name(name: str) -> str:
    """Return a name that a server accepts: letters, digits, ".", "_" and "-"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "classifier"
