"""A classifier from elsewhere before it is a bundle, and what it or its user says about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import ClassifierError


@dataclass(frozen=True)
class Metadata:
    """A classifier's own description, or its user's; None for what is not said.

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

    def over(self, other: Metadata) -> Metadata:
        """Return this description, with what it leaves open from the other one."""
        return replace(other, **{key: value for key, value in vars(self).items() if value})

    def preprocessing(self, origin: str) -> Preprocessing:
        """Return how an image becomes its input.

        Raises:
            ClassifierError: it does not say so.
        """
        if self.size is None or self.mean is None or self.std is None:
            missing = [f"--{key}" for key in ("size", "mean", "std") if getattr(self, key) is None]
            raise ClassifierError(
                f"{origin} does not say how an image becomes its input: give {', '.join(missing)} "
                "(--size 224x224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225, or --mean 0,0,0 --std 1,1,1 if it "
                "takes values in [0, 1])"
            )
        return Preprocessing(*self.size, self.mean, self.std)


@dataclass(frozen=True)
class ImportedClassifier:
    """A classifier from elsewhere.

    Attributes:
        origin: which kind of source it came from, for users and for the bundle.
        model: normalised images (N, 3, H, W) float32 -> logits (N, classes), in evaluation mode on the CPU; or an ONNX
            file, served unchanged.
        metadata: its own.
        notes: what users should know, one sentence each.
        facts: goes into the bundle's recipe.
    """

    origin: str
    model: nn.Module | Path
    metadata: Metadata
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)


def plain_name(name: str) -> str:
    """Return a name that a server accepts: letters, digits, ".", "_" and "-"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "classifier"
