"""What is kept of a lab is enough to go on with it elsewhere."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from reproduction.kept import keep, kept_folder, rebuild
from reproduction.lab import Lab
from reproduction.plan import Item, Plan, SnapshotBudget
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.lab_files import lab_folder
from sfumato.errors import ResultsError
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.training import load_recipe, train
from synthetic import save_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, own_caches):
    """(plan, lab) with a classifier and its obfuscator, trained and written in half precision."""
    root = tmp_path_factory.mktemp("kept")
    images = save_folder(root / "images", train=24, test=12)
    common = f'[data]\nsource = "{images}"\n[training]\nepochs = 1\nbatch_size = 8\nhalf_weights = true\n'
    classifier, obfuscator, trunk = (root / f"{name}.toml" for name in ("classifier", "obfuscator", "trunk"))
    classifier.write_text(f'kind = "classifier"\nname = "x"\narchitecture = "vgg7"\n{common}')
    obfuscator.write_text(f'kind = "obfuscator"\nname = "x"\nclassifier = "x"\n{common}')
    trunk.write_text(f'kind = "classifier"\nname = "x"\narchitecture = "obfuscator-trunk"\n{common}')
    plan = Plan(
        size="paper",
        title="Tiny",
        description="tiny",
        classifiers=(Item("one", str(classifier), kept=True),),
        obfuscators=(Item("one-obfuscator", str(obfuscator), classifier="one", start="trunk", kept=True),),
        local=None,
        sweep=(),
        snapshots=SnapshotBudget(images=64, test_images=12),
        data=str(images),
        trunk=(Item("trunk", str(trunk), kept=True),),
    )
    lab = Lab(plan, root / "lab", torch.device("cpu"))
    train(load_recipe(classifier), lab.run(plan.classifiers[0]).folder)
    overrides = [f'classifier="{lab.path(plan.classifiers[0])}"']
    start = train(load_recipe(trunk), lab.run(plan.trunk[0]).folder)
    train(load_recipe(obfuscator, overrides), lab.run(plan.obfuscators[0]).folder, start=start)
    return plan, lab


def elsewhere(made, folder):
    return Lab(made[0], folder / "lab", torch.device("cpu"))


def test_an_empty_lab_gets_the_same_bundles(made, tmp_path):
    plan, lab = made
    keep(lab, tmp_path / "results")
    for manifest in (tmp_path / "results").rglob("bundle.json"):  # as earlier versions wrote them
        manifest.write_text(manifest.read_text().replace('_images"', '_pictures"'))
    other, said = elsewhere(made, tmp_path), []
    for item in plan.items:
        assert rebuild(other, item, tmp_path / "results", said.append)
        assert other.state(item).name == "done"
        mine, theirs = other.bundle(item), lab.bundle(item)
        assert mine.files == theirs.files  # byte for byte, ONNX included
        assert mine.figures == theirs.figures and mine.provenance.commit == theirs.provenance.commit
    assert said[0].startswith("one: rebuilt from the weights in") and "differ" not in " ".join(said)
    mine, theirs = (lab_folder(place.path(plan.obfuscators[0])) / "lab.json" for place in (other, lab))
    assert mine.read_bytes() == theirs.read_bytes()
    names = sorted(path.name for path in kept_folder(tmp_path / "results", plan.obfuscators[0]).iterdir())
    assert names == ["bundle.json", "deobfuscator.safetensors", "obfuscator.safetensors"]
    net = load_classifier(other.path(plan.classifiers[0])).net
    assert all(torch.equal(p, p.half().float()) for p in net.parameters())


def test_an_obfuscator_is_not_rebuilt_without_the_classifier_that_it_was_trained_for(made, tmp_path):
    plan, lab = made
    keep(lab, tmp_path / "results")
    other = elsewhere(made, tmp_path)
    assert not rebuild(other, plan.obfuscators[0], tmp_path / "results", print)
    assert rebuild(other, plan.classifiers[0], tmp_path / "results", print)
    about = kept_folder(tmp_path / "results", plan.obfuscators[0]) / "bundle.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"classifier_fingerprint": "sha256:another"}))
    assert not rebuild(other, plan.obfuscators[0], tmp_path / "results", print)


def test_of_a_lab_that_is_half_done_what_is_done_is_kept(made, tmp_path):
    plan, lab = made
    keep(lab, tmp_path / "results")
    half = elsewhere(made, tmp_path)
    rebuild(half, plan.classifiers[0], tmp_path / "results", print)
    keep(half, tmp_path / "again")
    assert [path.name for path in (tmp_path / "again" / "networks").iterdir()] == ["one"]


def test_of_a_classifier_that_is_too_large_the_manifest_alone_is_kept(made, tmp_path):
    plan, lab = made
    light = dataclasses.replace(plan, classifiers=(dataclasses.replace(plan.classifiers[0], kept=False),))
    keep(dataclasses.replace(lab, plan=light), tmp_path)
    assert [path.name for path in kept_folder(tmp_path, plan.classifiers[0]).iterdir()] == ["bundle.json"]
    assert not rebuild(elsewhere(made, tmp_path), plan.classifiers[0], tmp_path, print)


@pytest.mark.parametrize("damage", ["weights", "manifest"])
def test_what_is_damaged_is_named(made, tmp_path, damage):
    plan, lab = made
    keep(lab, tmp_path)
    folder = kept_folder(tmp_path, plan.classifiers[0])
    if damage == "weights":
        (folder / "weights.safetensors").write_bytes(b"broken")
    else:
        (folder / "bundle.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"networks/one is damaged \(\w+: .*move it away to train one"):
        rebuild(elsewhere(made, tmp_path), plan.classifiers[0], tmp_path, print)


def test_a_disk_that_refuses_is_an_error_of_ours(made, tmp_path):
    (tmp_path / "networks").touch()
    with pytest.raises(ResultsError, match="one cannot be kept in"):
        keep(made[1], tmp_path)


def test_a_bundle_of_half_weights_says_so(made):
    assert Bundle.load(made[1].path(made[0].classifiers[0])).recipe.others["training"]["half_weights"] is True
