"""A classifier from elsewhere before it is a bundle, and what it or its user says about it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from sfumato.artifacts.class_map import checked_groups
from sfumato.artifacts.files import read_json
from sfumato.artifacts.labelling import Labelling
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import BundleError, ClassifierError


@dataclass(frozen=True)
class Metadata:
    """A classifier's own description, or its user's; None for what is not said.

    Attributes:
        size: (height, width) of its input, in pixels.
        mean: per RGB channel, on the [0, 1] scale.
        std: likewise.
        labels: one name per output, in their order.
        name: its name at a server.
        class_map: the classes of a task, each with the index of an output or a list of them; without it, every output
            is a class.
        labelling: whether an image has one of the classes, or any number of them at once; single-label if not said.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: tuple[str, ...] | None = None
    name: str | None = None
    class_map: Mapping[str, object] | None = None
    labelling: Labelling | None = None

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
        model: normalised images (N, 3, H, W) float32, or of one channel, -> logits (N, classes), in evaluation mode on
            the CPU; or an ONNX file, served unchanged.
        metadata: its own.
        notes: what users should know, one sentence each.
        facts: goes into the bundle's recipe.
        grey: it says that it takes images of one channel; of a module only trying tells.
    """

    origin: str
    model: nn.Module | Path
    metadata: Metadata
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)
    grey: bool = False


def read_class_map(file: Path) -> dict[str, object]:
    """Read a class map: a TOML or JSON file of names, each with the index of an output or a list of them.

    Raises:
        ClassifierError: it is none, or not consistent in itself; see `checked_groups`.
    """
    if file.suffix not in (".toml", ".json"):
        raise ClassifierError(f"{file} is no class map: a .toml or .json file is expected, such as `dog = [151, 152]`")
    try:
        raw = read_json(file, ClassifierError) if file.suffix == ".json" else tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ClassifierError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of both parsers, and of the encoding
        raise ClassifierError(
            f"{file} cannot be read as TOML: {error}; each line is name = index, or name = [index, index]; a name with "
            "spaces needs quotes, and stands there once"
        ) from error
    if not isinstance(raw, dict):
        raise ClassifierError(f"{file} holds a {type(raw).__name__}; an object of names and indices is expected")
    try:
        checked_groups(raw)
    except BundleError as error:
        raise ClassifierError(f"{file}: {error}") from error
    return raw


def plain_name(name: str) -> str:
    """Return a name that a server accepts: letters, digits, ".", "_" and "-"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "classifier"
