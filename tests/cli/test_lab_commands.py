"""`evaluate`, `demo` and `train` as a person runs them."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from PIL import Image

import commands
import tiny
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle

ROOT = Path(__file__).parents[2]
RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


sfumato = partial(commands.sfumato, cwd=ROOT)


def test_cost_prints_the_papers_overhead_columns():
    """Overheads of table 1, rounded as the paper rounds them."""
    said = json.loads(sfumato("evaluate", "--cost", "--json").stdout)
    rows = {row["classifier"]: row for row in said["classifiers"]}
    published = {"vgg19": (6.7, 1.6), "resnet18": (4.8, 2.9), "resnet50": (2.1, 1.4), "googlenet": (1.7, 5.3)}
    for name, (macs, params) in published.items():
        assert 100 * rows[name]["overhead_macs_paper_order"] == pytest.approx(macs, abs=0.1)
        assert 100 * rows[name]["overhead_params"] == pytest.approx(params, abs=0.05)


def test_cost_refuses_what_it_does_not_know():
    assert "known: resnet20" in sfumato("evaluate", "--cost", "alexnet", code=1).stderr
    assert "multiples of 8" in sfumato("evaluate", "--cost", "--size", "33x32", code=1).stderr
    assert "vgg19 does not take" in sfumato("evaluate", "--cost", "vgg19", "--size", "16x16", code=1).stderr


def test_demo_answers_on_images_that_were_not_sent(tmp_path: Path):
    own = tmp_path / "own.png"
    Image.fromarray(tiny.image(1, 50, 40)).save(own)
    # A token in the environment is for servers of the user's own.
    said = json.loads(sfumato("demo", own, "-o", tmp_path / "out", "--json", SFUMATO_TOKEN="s3cret").stdout)
    rows = said["rows"]
    assert [row["truth"] for row in rows] == [None, *(sample.label for sample in shipped.samples())]
    assert said["server"].startswith("http://127.0.0.1:")
    # Two in three is far below the shipped figures and far above guessing one in ten.
    for answers in ("original", "prediction"):
        assert sum(row[answers] == row["truth"] for row in rows) >= len(rows) * 0.66
    sent = [row for row in rows if row["predicted_by"] == "cloud"]
    assert 0 < len(sent) < len(rows) / 2, "the shipped obfuscator answers most images on the device"
    assert all(12_000 < row["payload_bytes"] < 13_000 and row["obfuscated"] == row["prediction"] for row in sent)
    assert all(row["payload_bytes"] == 0 and row["obfuscated"] is None for row in rows if row not in sent)
    with Image.open(said["panel"]) as panel:
        assert np.asarray(panel).std() > 20


def test_demo_says_which_image_it_cannot_use(tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing more")
    assert "broken.png" in sfumato("demo", broken, "-o", tmp_path, code=1).stderr


def test_demo_with_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in sfumato("demo", "-o", tmp_path / "file" / "out", code=1).stderr


def test_evaluate_of_the_wrong_pair_is_refused(tmp_path: Path, own_caches: Path):
    folder = tmp_path / "data"
    for split in ("train", "test"):
        for label in tiny.LABELS:
            (folder / split / label).mkdir(parents=True)
            Image.fromarray(tiny.image(3, 32, 32)).save(folder / split / label / "a.png")
    obfuscator, _ = tiny.save_bundles(tmp_path / "pair")
    done = sfumato("evaluate", obfuscator.path, "--data", folder, code=1)
    assert "was trained for classifier" in done.stderr


def test_a_misspelt_recipe_key_is_named(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('kind = "classifier"\nname = "x"\narchitecture = "resnet20"\n[training]\nepoch = 3\n')
    done = sfumato("train", recipe, "-o", tmp_path / "run", code=1)
    assert "unknown key 'training.epoch'; did you mean training.epochs?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(b"a run")
    done = sfumato("train", "recipes/cifar10-resnet20.toml", "-o", tmp_path, code=1)
    assert "--resume" in done.stderr
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"a run"


OBFUSCATORS = {
    "cifar10-resnet20-sketch": shipped.obfuscator_bundle,
    "cifar10-resnet20-obfuscator": shipped.papers_obfuscator_bundle,
}


@pytest.mark.parametrize("name", OBFUSCATORS)
def test_a_shipped_obfuscator_is_for_the_shipped_classifier_and_its_figures_are_in_the_results(name: str):
    classifier = Bundle.load(shipped.classifier_bundle(), kind="classifier")
    obfuscator = Bundle.load(OBFUSCATORS[name](), kind="obfuscator")
    assert obfuscator.classifier_fingerprint == classifier.classifier_fingerprint
    results = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert results["figures"]["test_images"] == 10_000
    figures = obfuscator.figures.to_json()
    audited = figures.pop("audit")
    assert results["figures"] == pytest.approx(figures, rel=1e-4)
    audit = json.loads((ROOT / "results" / "audits" / f"{name}.json").read_text(encoding="utf-8"))
    assert audited == {key: audit[key] for key in audited}
    for key in ("accuracy_plain", "accuracy_obfuscated"):
        assert f"{100 * results['figures'][key]:.2f} %" in RESULTS_PAGE


def test_the_readme_has_the_verdict_on_the_default_obfuscator_whatever_it_says():
    audit = json.loads((ROOT / "results" / "audits" / "cifar10-resnet20-sketch.json").read_text(encoding="utf-8"))
    for sentence in audit["verdict"]["sentences"]:
        assert sentence in RESULTS_PAGE


def test_the_readme_has_the_mean_over_the_training_seeds():
    name = "cifar10-resnet20-sketch"
    files = [ROOT / "results" / "audits" / f"{name}.json", *(ROOT / "results" / "seeds").glob(f"{name}-*.json")]
    audits = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len({audit["target"]["fingerprint"] for audit in audits}) == 3, "three trainings, not one three times"
    assert {audit["budget"]["name"] for audit in audits} == {"standard"}
    accuracies = [100 * audit["utility"]["accuracy_obfuscated"] for audit in audits]
    leakages = [audit["best"]["excess_leakage"] for audit in audits]
    assert f"| {mean(accuracies):.2f} % ± {stdev(accuracies):.2f} |" in RESULTS_PAGE
    assert f"| {mean(leakages):.3f} ± {stdev(leakages):.3f} |" in RESULTS_PAGE


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "audits").glob("*.json")), ids=lambda file: file.stem)
def test_every_audit_has_its_row_in_the_readme(file: Path):
    audit = json.loads(file.read_text(encoding="utf-8"))
    name, best = audit["target"]["name"], audit["best"]
    (row,) = (line for line in RESULTS_PAGE.splitlines() if line.replace("**", "").startswith(f"| {name} |"))
    accuracy, leakage = audit["utility"]["accuracy_obfuscated"], best["excess_leakage"]
    shown = [f"{100 * accuracy:.1f} %", f"{leakage:.2f}", f"{best['mse']:.4f}", f"{best['attacker']}, {best['threat']}"]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == shown


def test_a_decompression_bomb_costs_one_line(tmp_path: Path):
    bomb = tmp_path / "wide.png"
    Image.new("1", (20_000, 5_000)).save(bomb)
    said = sfumato("protect", bomb, "-o", tmp_path / "out", code=1)
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"skipped: {bomb}: 20000 x 5000 is more than 50000000 pixels")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    done = sfumato("evaluate", "-o", tmp_path / "file" / "x.json", code=1)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_class_map_from_the_command_line_to_the_plain_accuracy(tmp_path: Path, own_caches: Path):
    """The tiny classifier as an ONNX file: two of its four outputs are one class."""
    net = tiny.save_classifier(tmp_path / "net.onnx")
    (tmp_path / "map.toml").write_text("pet = [0, 1]\ntruck = 3\n")
    described = ["--mean", "0,0,0", "--std", "1,1,1", "--class-map", tmp_path / "map.toml"]
    said = json.loads(sfumato("import", net, "-o", tmp_path / "bundle", *described, "--json").stdout)
    assert (said["classes"], said["outputs"]) == (2, 4)
    assert "2 classes of 4 outputs" in sfumato("import", net, "-o", tmp_path / "bundle", *described).stdout
    correct = 0
    for index in range(12):
        pixels, label = tiny.image(index), ("pet", "truck")[index % 2]
        file = tmp_path / "data" / "test" / label / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        logits = tiny.logits(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)[0].astype(np.float64)
        p = np.exp(logits)
        correct += ("pet" if p[0] + p[1] > p[3] else "truck") == label
    alone = ["evaluate", tmp_path / "bundle", "--data", tmp_path / "data"]
    said = json.loads(sfumato(*alone, "--json").stdout)
    assert said["figures"] == {"accuracy_plain": pytest.approx(correct / 12), "test_images": 12}
    assert "obfuscator" not in said
    assert said["classifier"]["fingerprint"] == Bundle.load(tmp_path / "bundle").classifier_fingerprint
    assert "not with a classifier's bundle alone" in sfumato(*alone, "--round", code=1).stderr
    assert Bundle.load(tmp_path / "bundle").ood_detector is None
    assert "calibrated on 12 images" in sfumato(*alone, "--calibrate", "-o", tmp_path / "result.json").stderr
    detector = Bundle.load(tmp_path / "bundle").ood_detector
    assert json.loads((tmp_path / "result.json").read_text())["ood_detector"] == asdict(detector)
    assert "is for one bundle" in sfumato("evaluate", "--transfer", "--calibrate", code=1).stderr
    (tmp_path / "map.toml").write_text("pet = [0, 4]\ntruck = 3\n")
    assert "takes the output 4" in sfumato("import", net, "-o", tmp_path / "other", *described, code=1).stderr
    assert not (tmp_path / "other").exists()
