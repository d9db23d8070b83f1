import json
from dataclasses import fields

import pytest

from json_schema import faults, schema
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Figures, Provenance, RecipeRecord, without_local_places
from sfumato.errors import BundleError
from tiny import save_bundles

SCHEMA = schema("bundle")


def plain(bundle: Bundle) -> dict:
    return json.loads(json.dumps(bundle.to_json()))


@pytest.mark.parametrize("name", ["classifier_bundle", "obfuscator_bundle", "papers_obfuscator_bundle"])
def test_shipped_bundles_follow_the_schema_and_survive_saving(name):
    folder = getattr(shipped, name)()
    written = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert faults(written, SCHEMA) == []
    assert plain(Bundle.load(folder)) == written


def test_small_bundles_follow_the_schema_and_wrong_ones_do_not(tmp_path):
    for bundle in save_bundles(tmp_path, threshold=0.5):
        right = plain(bundle)
        assert faults(right, SCHEMA) == []
        for wrong in (
            {**right, "gate": {"threshold": 2, "offload_rate": 0.1, "images": 5}},
            {**right, "preprocessing": {"height": 8, "width": 8, "mean": [0, 0], "std": [1, 1, 0]}},
            {**right, "files": {"model.onnx": "abc"}},
            {**right, "figures": {"accuracy_plain": "high"}},
            {**right, "more": 1},
            {key: value for key, value in right.items() if key != "labels"},
        ):
            assert faults(wrong, SCHEMA) != []


@pytest.mark.parametrize("record", [RecipeRecord, Figures, Provenance])
def test_the_schema_names_every_field(record):
    named = SCHEMA["properties"][record.__name__.removesuffix("Record").lower()]["properties"]
    assert set(named) == {entry.name for entry in fields(record)} - {"others"}


def test_a_record_loses_nothing():
    raw = {"kind": "sketch", "code_bits": 8, "name": None, "training": {"epochs": 3}, "": [1]}
    assert RecipeRecord.from_json(raw).to_json() == raw
    assert RecipeRecord.from_json(raw).updated(kind="baseline", name="x").to_json() == {
        **raw,
        "kind": "baseline",
        "name": "x",
    }


@pytest.mark.parametrize(
    ("record", "raw"),
    [
        (RecipeRecord, {"kind": 3}), (RecipeRecord, {"output": "8-bit"}), (Figures, {"accuracy_plain": "high"}),
        (Figures, {"audit": []}), (Provenance, {"history": {}}),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(record, raw):
    with pytest.raises(BundleError, match="must be of type"):
        record.from_json(raw)


def test_provenance_states_commit_versions_and_machine():
    made = provenance(seed=3, remark="x")
    assert made.seed == 3 and made.others["remark"] == "x" and made.to_json()["remark"] == "x"
    assert made.libraries["numpy"] and made.machine["cpu"]
    assert Provenance.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_bundle_of_the_first_version_is_read(tmp_path):
    bundle, _ = save_bundles(tmp_path, threshold=0.5)
    old = bundle.to_json() | {"schema": "sfumato.bundle/1", "figures": {"test_pictures": 7}}
    old["gate"] = {"threshold": 0.5, "offload_rate": 0.5, "pictures": 100}
    (bundle.path / "bundle.json").write_text(json.dumps(old))
    assert Bundle.load(bundle.path).gate == bundle.gate
    assert Bundle.load(bundle.path).figures.test_images == 7
    assert Bundle.load(bundle.path).save().to_json()["schema"] == "sfumato.bundle/2"


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/home/ada/photos", "photos"),
        ("~/photos", "photos"),
        ("C:\\Users\\ada\\photos", "photos"),
        ("runs/net/bundle", "runs/net/bundle"),
        ("cifar10", "cifar10"),
        ({"a": ["/x/y", 3, None]}, {"a": ["y", 3, None]}),
    ],
)
def test_absolute_paths_are_cut(value, left):
    assert without_local_places(value) == left
