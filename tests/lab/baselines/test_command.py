"""`sfumato baseline` as a person runs it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from commands import sfumato
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.lab.baselines import METHODS, load_module
from sfumato.lab.classifiers import load_classifier
from synthetic import CLASSES, save_folder

pytestmark = pytest.mark.usefixtures("own_caches")
baseline = partial(sfumato, "baseline")


@pytest.fixture
def data(tmp_path: Path) -> list[object]:
    """Images that are called as the shipped classifier calls its first classes."""
    names = Bundle.load(shipped.classifier_bundle()).labels[: len(CLASSES)]
    return ["--data", save_folder(tmp_path / "images", names=names), "-o", tmp_path / "out"]


def test_the_list_tells_of_every_method():
    said = json.loads(baseline("--list", "--json").stdout)["baselines"]
    assert [row["name"] for row in said] == list(METHODS)
    assert all(row["summary"] and row["source"] for row in said)
    blur = next(row for row in said if row["name"] == "blur")
    assert blur["default"] == METHODS["blur"].default
    assert "pixels" in blur["strength"]


def test_a_baseline_becomes_a_bundle_with_figures(tmp_path, data):
    said = json.loads(baseline("noise", "--strength", "0.01", "--seed", "4", *data, "--json").stdout)
    bundle = Bundle.load(tmp_path / "out" / "bundle", kind="obfuscator")
    assert said == {"bundle": str(bundle.path), "recipe": bundle.recipe.to_json(), "figures": bundle.figures.to_json()}
    assert bundle.recipe.others["strength"] == 0.01
    assert bundle.recipe.seed == bundle.provenance.seed == 4
    assert bundle.figures.test_images == bundle.provenance.test_images == 8
    assert bundle.classifier_fingerprint == Bundle.load(shipped.classifier_bundle()).classifier_fingerprint
    assert load_module(bundle).noise_kind == "gaussian"
    before = (tmp_path / "out" / "bundle" / "bundle.json").read_bytes()
    assert "--overwrite" in baseline("blur", *data, code=1).stderr
    assert (tmp_path / "out" / "bundle" / "bundle.json").read_bytes() == before


@pytest.mark.long
def test_joint_writes_its_own_classifier(tmp_path, data):
    said = baseline("joint", "--epochs", "2", "--images", "12", *data).stdout
    assert "accuracy_obfuscated" in said
    bundle = Bundle.load(tmp_path / "out" / "bundle", kind="obfuscator")
    frozen = load_classifier(tmp_path / "out" / "classifier")
    assert bundle.classifier_fingerprint == frozen.fingerprint
    assert frozen.fingerprint != Bundle.load(shipped.classifier_bundle()).classifier_fingerprint
    assert bundle.recipe.others["epochs"] == 2
    assert "short run" in bundle.recipe.note
    assert bundle.provenance.train_images == 12
    load_module(bundle)


def test_a_mistake_is_told_in_a_line(data, tmp_path):
    done = baseline("sharpen", *data, code=1)
    assert "there are identity, downsample" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
