"""The file that a sweep writes, `frontier.json`: schema `sfumato.frontier/2`, see `docs/schemas`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sfumato.artifacts.files import write_json
from sfumato.errors import ResultsError
from sfumato.lab.audit.schema import Provenance
from sfumato.lab.evaluation.results import as_type, read_object
from sfumato.lab.report.tradeoff import MeanAndDeviation, PaysOff

SCHEMA = "sfumato.frontier/2"
_READABLE = (SCHEMA, "sfumato.frontier/1")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, from_attributes=True)


def _renamed(name: str, before: str) -> Any:
    """A field that version 1 called something else."""
    return Field(validation_alias=AliasChoices(name, before))


class FrontierPoint(_Model):
    """A setting of the recipe over its seeds, compared with the best mixture at the same leakage.

    Attributes:
        name: such as "code_bits=4", with ", gated" if the gate is on.
        setting: value of each swept key.
        gated: whether the gate is on: predictions of high confidence are made on-device.
        seeds: points that it consists of.
        accuracy: in [0, 1].
        excess_leakage: over all images; a lower bound.
        mixture: accuracy of the best mixture at that leakage; None, as are `gain` and `mixing`, without an on-device
            baseline.
        gain: accuracy above the mixture's, per seed.
        mixing: the mixture, in words.
        better: seeds whose gain is large enough.
        pays_off: "yes" if all seeds are better, "no" if their mean gain is too small, "unclear" in between.
        sentence: all that in words.
        budget: name of the audits' attack budget.
        attackers: the best attacker of each seed.
        runs: folder of each seed's training.
        audits: file of each seed's audit.
    """

    name: str
    setting: dict[str, str]
    gated: bool
    seeds: int
    accuracy: MeanAndDeviation
    excess_leakage: MeanAndDeviation
    mixture: MeanAndDeviation | None
    gain: MeanAndDeviation | None
    mixing: str | None
    better: int
    pays_off: PaysOff = _renamed("pays_off", "worth")
    sentence: str
    budget: str
    attackers: tuple[str, ...]
    runs: tuple[str, ...]
    audits: tuple[str, ...]


class ComparisonPoint(_Model):
    """Another point of the plot; see `sfumato.lab.report.points`."""

    name: str
    accuracy: float
    excess_leakage: float | None
    role: str
    budget: str | None
    source: str
    best_attacker: str | None
    local: float | None = None
    mixture: float | None = None
    mixing: str | None = None


class NamedBudget(_Model):
    """The attack budget of the audits."""

    name: str
    description: str = _renamed("description", "says")


class NamedClassifier(_Model):
    """The classifier that all points are for."""

    name: str
    fingerprint: str


class DeviceCost(_Model):
    """Multiply-accumulates per image on the device.

    Attributes:
        obfuscator_macs: of the largest obfuscator.
        on_device_macs: of the on-device baseline; None if there is none, or none that a recipe describes.
    """

    obfuscator_macs: int
    on_device_macs: int | None = _renamed("on_device_macs", "local_macs")


class Verdict(_Model):
    """Whether offloading pays off at any point, and why."""

    pays_off: PaysOff = _renamed("pays_off", "worth")
    sentences: tuple[str, ...]


class Frontier(_Model):
    """The content of `frontier.json`.

    Attributes:
        recipe: the TOML file.
        budget: of the audits.
        classifier: that all points are for.
        on_device: folder of the on-device baseline's bundle; None without one.
        device: cost on the device.
        points: one for each setting, and one more with its gate if it has one.
        comparison: other audits and the ends of the frontier.
        failed: the error of each point that could not be made.
        verdict: over all points.
        plot: the PNG file.
        provenance: see `sfumato.artifacts.provenance`.
    """

    recipe: str
    budget: NamedBudget
    classifier: NamedClassifier
    on_device: str | None = _renamed("on_device", "local")
    device: DeviceCost
    points: tuple[FrontierPoint, ...]
    comparison: tuple[ComparisonPoint, ...] = _renamed("comparison", "beside")
    failed: dict[str, str]
    verdict: Verdict
    plot: str
    provenance: Provenance


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of `frontier.json`."""
    found = Frontier.model_json_schema(mode="serialization")
    found["properties"] = {"schema": {"const": SCHEMA}, **found["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def write_frontier(path: Path, frontier: Frontier) -> None:
    """Write `frontier.json`.

    Raises:
        BundleError: the file cannot be written.
    """
    write_json(path, {"schema": SCHEMA, **frontier.model_dump(mode="json")})


def read_frontier(path: Path) -> Frontier:
    """Read a `frontier.json` of this version or the one before.

    Raises:
        ResultsError: there is none, or it is malformed.
    """
    found = read_object(path)
    if found is None or found.get("schema") not in _READABLE:
        raise ResultsError(f"{path} is not a file of schema {SCHEMA}; give the frontier.json of a sweep")
    return as_type(Frontier, found, f"{path} is malformed; move it away to make it again")
