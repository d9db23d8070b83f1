"""The class map: which of a classifier's outputs make up each class of a task.

The logit of a class is the log-sum-exp of the logits of its outputs, and outputs of no class are left out, so that its
probability is the sum of theirs, divided by the sum over all outputs that the map names.

The map is applied to the classifier's logits by whoever reads them: the client on the device after a reply, the lab
after the ONNX file or the network. The classifier, its file and its fingerprint stay as they are, wherever it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sfumato.errors import BundleError

Groups = tuple[tuple[int, ...], ...]
_LEAST_CLASSES = 2
_MOST_OUTPUTS = 1_000_000
_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class ClassMap:
    """Which outputs make up each class; made by `of`, which checks it.

    Attributes:
        outputs: how many logits the classifier gives for an image.
        groups: the indices of each class's outputs, from 0, in the order of the bundle's labels.
    """

    outputs: int
    groups: Groups

    @classmethod
    def of(cls, classes: Mapping[str, object], outputs: int) -> Self:
        """Make the map of classes to their indices, for a classifier with so many outputs.

        Raises:
            BundleError: see `checked_groups`; or an index is none of the classifier's outputs.
        """
        groups = checked_groups(classes)
        for name, group in zip(classes, groups, strict=True):
            unknown = [index for index in group if index >= outputs]
            if unknown:
                raise BundleError(
                    f"the class {name!r:.60} takes the output {unknown[0]}, but the classifier has {outputs:,}: 0 to "
                    f"{outputs - 1}"
                )
        return cls(outputs, groups)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], labels: Sequence[object]) -> Self:
        """Build it from the entry of `bundle.json`; a `BundleError` if it is malformed or does not fit the labels."""
        names = [label for label in labels if isinstance(label, str)]
        outputs, groups = raw.get("outputs"), raw.get("groups")
        if isinstance(outputs, bool) or not isinstance(outputs, int) or not 1 < outputs <= _MOST_OUTPUTS:
            raise BundleError(f"the class map's number of outputs must be 2 to {_MOST_OUTPUTS:,}, got {outputs!r:.60}")
        if not isinstance(groups, list) or not len(groups) == len(labels) == len(set(names)):
            raise BundleError(f"the class map must have one list of indices for each of {len(labels)} different labels")
        return cls.of(dict(zip(names, groups, strict=True)), outputs)

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        return {"outputs": self.outputs, "groups": [list(group) for group in self.groups]}

    @property
    def digest(self) -> str:
        """SHA-256 of the map, in hex."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    @property
    def sums(self) -> bool:
        """Whether a class has several outputs, so that only logits can be merged by `logits`."""
        return any(len(group) > 1 for group in self.groups)

    @property
    def order(self) -> list[int]:
        """The indices of all groups, one group after the other."""
        return [index for group in self.groups for index in group]

    def logits(self, outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Merge a classifier's logits: finite floats (N, outputs) -> (N, classes) of the same dtype, float32 at least.

        The logit of a class with one output is that output's, bit for bit.

        Raises:
            BundleError: another number of outputs.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.outputs:
            raise BundleError(f"the class map is for {self.outputs} outputs, the classifier gives {outputs.shape[1:]}")
        members = outputs[:, self.order].astype(np.float64)
        starts = np.cumsum([0, *map(len, self.groups[:-1])])
        merged: npt.NDArray[Any] = np.logaddexp.reduceat(members, starts, axis=1)
        return merged.astype(np.result_type(outputs.dtype, np.float32))


def class_logits(outputs: npt.NDArray[Any], class_map: ClassMap | None) -> npt.NDArray[Any]:
    """Return the logits (N, classes) of a classifier's outputs (N, outputs); without a map they are the outputs."""
    return outputs if class_map is None else class_map.logits(outputs)


def identity(fingerprint: str, class_map: ClassMap | None) -> str:
    """Return a classifier's fingerprint, and with a class map `<fingerprint> classes:<hex>`."""
    return fingerprint if class_map is None else f"{fingerprint} classes:{class_map.digest}"


def are_probabilities(outputs: npt.NDArray[Any]) -> bool:
    """Return whether every row of (N, outputs) finite floats is non-negative and sums to 1: no logits."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=1, dtype=np.float64) - 1) < _SUMS_TO_ONE).all())


def checked_groups(classes: Mapping[str, object]) -> Groups:
    """Return the indices of each class, of which each is one index or a list of them.

    Raises:
        BundleError: fewer than two classes, a name that is empty or differs from another one in case, "_", "-" and
            spaces alone, a class without an index, what is no index, or an index that is named twice.
    """
    if len(classes) < _LEAST_CLASSES:
        raise BundleError(f"a class map needs two classes at least, got {len(classes)}")
    names: dict[str, str] = {}
    owners: dict[int, str] = {}
    groups = []
    for name, given in classes.items():
        plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
        if not plain:
            raise BundleError(f"a class is called {name!r:.60}; give it a name")
        if plain in names:
            raise BundleError(f"the classes {names[plain]!r:.60} and {name!r:.60} are one name; give them two")
        names[plain] = name
        group = given if isinstance(given, list | tuple) else [given]
        if not group:
            raise BundleError(f"the class {name!r:.60} has no index; give it one, or leave it out")
        for index in group:
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise BundleError(
                    f"the class {name!r:.60} has {index!r:.60} for an index; indices are whole numbers from 0"
                )
            if index in owners:
                raise BundleError(
                    f"the output {index} is named twice: by {owners[index]!r:.60} and by {name!r:.60}; an output "
                    "belongs to one class"
                )
            owners[index] = name
        groups.append(tuple(group))
    return tuple(groups)
