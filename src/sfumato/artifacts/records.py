"""The open-ended parts of `bundle.json`, typed: the recipe, the measured figures, and where they come from.

Each record types what this version of sfumato reads; `docs/schemas/bundle.json` says what every field means. Keys
without a field here are kept in `others`, so that loading and saving a bundle loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Self

from sfumato.artifacts.manifest import MANIFEST
from sfumato.errors import BundleError

_TYPES: dict[str, tuple[type, ...]] = {
    "str | None": (str,),
    "int | None": (int,),
    "float | None": (int, float),
    "Mapping[str, Any] | None": (Mapping,),
    "Sequence[Any] | None": (list, tuple),
    "Mapping[str, Any] | str | None": (Mapping, str),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object of which some keys are typed; `others` has those without a field, and explicit nulls."""

    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Build a record from a JSON object; a `BundleError` if the value of a field has another type."""
        types = {entry.name: _TYPES[str(entry.type)] for entry in fields(cls) if entry.name != "others"}
        known = {key: raw[key] for key in types if raw.get(key) is not None}
        for key, value in known.items():
            if isinstance(value, bool) or not isinstance(value, types[key]):
                where, kind = cls.__name__.lower().removesuffix("record"), types[key][-1].__name__
                raise BundleError(f"{key!r} in the {where} must be of type {kind}, got {value!r:.60}")
        return cls(**known, others={key: value for key, value in raw.items() if key not in known})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads back as an equal record."""
        known = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "others"}
        return {**{key: value for key, value in known.items() if value is not None}, **self.others}

    def updated(self, **values: Any) -> Self:
        """Return a record with some values replaced or added, by their keys in JSON; raise as `from_json`."""
        return self.from_json({**self.to_json(), **values})

    def without_local_places(self) -> Self:
        """Return a record in which of each absolute path only the last part is left."""
        return self.from_json(without_local_places(self.to_json()))


def without_local_places(value: Any) -> Any:
    """Return a JSON value in which of each absolute path, which may name a person, only the last part is left."""
    if isinstance(value, dict):
        return {key: without_local_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_places(item) for item in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return value


@contextmanager
def reading(entry: str) -> Iterator[None]:
    """Name the entry of `bundle.json` in a `BundleError` if what is read of it is missing or of the wrong type."""
    try:
        yield
    except (KeyError, OverflowError, TypeError) as error:
        raise BundleError(f"{entry} in {MANIFEST} is malformed: {error!r}") from error


def integer(value: object, name: str) -> int:
    """Return an integer of a JSON value; a `TypeError` that names it if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r:.60}")
    return value


def number(value: object, name: str) -> float:
    """Return a number of a JSON value; a `TypeError` that names it if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r:.60}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class RecipeRecord(Record):
    """The resolved recipe that made a bundle, as far as device and cloud read it; the lab parses `to_json()`."""

    kind: str | None = None
    name: str | None = None
    note: str | None = None
    method: str | None = None
    seed: int | None = None
    architecture: str | None = None
    origin: str | None = None
    notes: Sequence[Any] | None = None
    output: Mapping[str, Any] | None = None
    code_bits: int | None = None
    quantized: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | str | None = None
    held_out_images: int | None = None

    @property
    def eight_bit_output(self) -> bool:
        """Whether the obfuscator's output has whole levels of 0 to 255 before normalisation."""
        return self.output is not None and self.output.get("format") == "8-bit"


@dataclass(frozen=True, kw_only=True)
class Figures(Record):
    """The measurements of a bundle. Accuracies and rates are in [0, 1], over `test_images` images."""

    accuracy_plain: float | None = None
    accuracy_obfuscated: float | None = None
    test_images: int | None = None
    accuracy_device: float | None = None
    offload_rate: float | None = None
    accuracy_gated: float | None = None
    mean_average_precision_plain: float | None = None
    mean_average_precision_obfuscated: float | None = None
    f1_plain: float | None = None
    f1_obfuscated: float | None = None
    joint_deobfuscator_mse: float | None = None
    joint_deobfuscator_psnr_db: float | None = None
    joint_deobfuscator_ssim: float | None = None
    codeword_means_mse: float | None = None
    codeword_means_psnr_db: float | None = None
    codeword_means_ssim: float | None = None
    merged_codes: int | None = None
    occurring_codes: int | None = None
    fewest_images_per_code: int | None = None
    agreement: float | None = None
    compared: int | None = None
    surrogate_agreement: float | None = None
    queries: int | None = None
    queries_learning: int | None = None
    quantized: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """The origin of a number; `others` holds what only the program that measured it knows."""

    sfumato: str | None = None
    commit: str | None = None
    written: str | None = None
    python: str | None = None
    libraries: Mapping[str, Any] | None = None
    machine: Mapping[str, Any] | None = None
    seed: int | None = None
    epochs: float | None = None
    accelerator: str | None = None
    device: str | None = None
    precision: str | None = None
    train_images: int | None = None
    test_images: int | None = None
    data: str | None = None
    training_seconds: float | None = None
    history: Sequence[Any] | None = None
    trained_for: Sequence[Any] | None = None
    taught_by: Sequence[Any] | None = None
    data_sha256: Mapping[str, Any] | str | None = None
