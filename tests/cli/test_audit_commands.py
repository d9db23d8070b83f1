"""`audit` in this process, with a budget of seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import tiny
from scenes import SIDE, TINY, images
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import Provenance
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import AuditError, SfumatoError
from sfumato.lab.audit import budget, frames
from sfumato.lab.data import load_images
from synthetic import save_folder


@pytest.fixture
def photos(tmp_path):
    """One folder per class and no split, as people have it."""
    folder = tmp_path / "photos"
    known = images(200)
    for index, (image, label) in enumerate(zip(known.images, known.labels.tolist(), strict=True)):
        file = folder / known.names[label] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return folder


@pytest.fixture(autouse=True)
def quickly(tmp_path, monkeypatch, own_caches):  # the sanity checks, once made, serve the next audit too
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # else the command starts the process again
    monkeypatch.setitem(budget.BUDGETS, "quick", TINY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filters.py").write_text("def negative(x):\n    return 1 - x\n")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.long
def test_a_callable_and_a_folder_of_photographs_give_a_report(tmp_path, photos):
    done = run("audit", "filters:negative", "--data", photos, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["verdict"]["finding"] == "leaks"
    folder = tmp_path / "audits" / "filters-negative-quick"
    found = json.loads((folder / "audit.json").read_text())
    assert found["data"] | {"sha256": 0} == {
        "source": str(photos), "train_images": 160, "test_images": 40, "held_out": 32, "sha256": 0,
    }  # fmt: skip
    assert found["utility"] is None
    with Image.open(folder / "panel.png") as panel:
        assert panel.width > 12 * SIDE
    again = run("audit", "filters:negative", "--data", photos)
    assert isinstance(again.exception, SfumatoError) and "--resume" in str(again.exception)
    assert run("audit", "filters:negative", "--data", photos, "--resume").exit_code == 0


@pytest.mark.long
def test_a_bundle_gets_its_figures(tmp_path, photos):
    from audit_bundles import written

    bundle = written(tmp_path / "bundle", "blur")
    done = run("audit", bundle.path, "--data", photos)
    assert done.exit_code == 0, done.output
    assert "LEAKS" in done.stdout and "report:" in done.stdout and "attacks by" in done.stdout
    figures = Bundle.load(bundle.path).figures.audit
    assert figures["verdict"]["finding"] == "leaks" and figures["best"]["excess_leakage"] > 0.5
    shorter = run("audit", bundle.path, "--data", photos, "--budget-scale", "0.5")
    assert shorter.exit_code == 0 and "keeps the figures of an earlier audit" in shorter.stdout
    assert Bundle.load(bundle.path).figures.audit == figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nothing that can be audited"),
        (["filters:negative", "--data", "./nowhere"], "no data at ./nowhere"),
        (["filters:negative", "--size", "large"], "rows x columns"),
        (["filters:positive"], "cannot be imported"),
        (["filters:negative", "--out", "filters.py"], "is a file"),
    ],
)
def test_bad_input_is_named_before_anything_runs(photos, arguments, message):
    data = [] if "--data" in arguments else ["--data", photos]
    done = run("audit", *arguments, *data)
    assert done.exit_code != 0 and message in str(done.exception)


def test_a_folder_with_an_audit_is_refused_before_the_images_are_read(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "audit.json").write_text("{}")
    audit = ["audit", "filters:negative", "--data", "./nowhere", "-o", tmp_path]
    assert "holds an audit already" in str(run(*audit).exception)
    assert "choose one" in str(run(*audit, "--resume", "--overwrite").exception)
    for option in ("--resume", "--overwrite"):
        assert "no data at ./nowhere" in str(run(*audit, option).exception)
    assert (tmp_path / "work" / "audit.json").is_file(), "nothing is removed before there is something to replace it"


@pytest.mark.long
def test_sanity_checks_that_fail_end_with_an_error(tmp_path, photos):
    done = run("audit", "--check-attacks", "--data", photos, "-o", tmp_path / "checks.json")
    checks = json.loads((tmp_path / "checks.json").read_text())["sanity_checks"]
    assert done.exit_code == (0 if all(check["passed"] for check in checks) else 1)
    assert len(checks) == 11 and "FAILED" in done.stdout


@pytest.mark.long
def test_training_images_in_a_bundle_end_with_an_error(tmp_path, photos):
    from audit_bundles import written

    bundle, file = written(tmp_path / "bundle", "blur"), tmp_path / "extraction.json"
    size = ["--data", photos, "--extraction", "-o", file]
    done = run("audit", bundle.path, *size)
    assert done.exit_code == 0 and "passed" in done.stdout, done.output
    assert json.loads(file.read_text())["extraction"] == {"bundle": []}
    train = load_images(str(photos), "train", size=(16, 16))
    save_file({"few": train.images[:4].contiguous()}, bundle.path / "deobfuscator.safetensors")
    bundle.save()
    done = run("audit", bundle.path, *size)
    assert done.exit_code == 1 and "YES" in done.stdout
    (row,) = json.loads(file.read_text())["extraction"]["bundle"]
    assert row["train_copied"] >= 4 and row["file"] == "deobfuscator.safetensors"


def test_membership_of_an_obfuscator_that_learned_nothing(tmp_path, monkeypatch):
    from sfumato.lab.audit import membership

    passed = membership.SanityCheck(name="check", passed=True, measured="AUC 1", needed="AUC 0.75")
    monkeypatch.setattr(membership, "membership_checks", lambda *_, **__: (passed,))
    data = str(save_folder(tmp_path / "data", train=32, test=24, size=(tiny.SIZE, tiny.SIZE), names=tiny.LABELS))
    (bundle, _), file = tiny.save_bundles(tmp_path), tmp_path / "membership.json"
    about = ["--membership", "--classifier", tmp_path / "classifier", "--data", data, "-o", file]
    done = run("audit", bundle.path, *about)
    assert isinstance(done.exception, AuditError) and "does not say which images" in str(done.exception)
    train = load_images(data, "train")
    made = Provenance(data_sha256={"train": train.sha256}, train_images=len(train))
    replace(bundle, provenance=made).save()
    done = run("audit", bundle.path, *about)
    assert done.exit_code == 0 and "not clearly inferred" in done.stdout and "check: passed" in done.stdout, done.output
    found = json.loads(file.read_text())
    assert membership.MembershipResult.of(found, file).as_json == found and found["schema"] == "sfumato.membership/1"
    assert [(row["subject"], row["members"]) for row in found["attacks"]] == [
        ("obfuscator", 24), ("obfuscator", 24), ("classifier", 24), ("images", 24),
    ]  # fmt: skip
    failed = passed.model_copy(update={"passed": False})
    monkeypatch.setattr(membership, "membership_checks", lambda *_, **__: (failed,))
    assert run("audit", bundle.path, *about, "--images", 10, "--json").exit_code == 1
    refused = run("audit", bundle.path, *about, "--budget", "full")
    assert "--budget: not with --membership" in str(refused.exception)


def test_frames_are_measured_plotted_and_compared(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(frames, "SCENES", 8)
    monkeypatch.setattr(frames, "DECODERS", ("least squares",))
    file = tmp_path / "frames" / "negative.json"
    about = ["--frames", "--data", photos, "--images", 40, "-o", file]
    done = run("audit", "filters:negative", *about)
    assert done.exit_code == 0 and "every 10th frame" in done.stdout and "about" in done.stderr, done.output
    found = json.loads(file.read_text())
    assert frames.FramesResult.of(found, file).as_json == found and found["scenes"] == 8
    with Image.open(file.with_suffix(".png")) as plot:
        assert plot.width == 2400
    other = run("audit", "filters:negative", *about[:-1], tmp_path / "two.json", "--compare", file.parent, "--json")
    assert other.exit_code == 0 and json.loads(other.stdout)["leakages"] == found["leakages"]
    refused = run("audit", "filters:negative", *about[:-1], tmp_path / "two.png")
    assert ".json file" in str(refused.exception)


def test_references_say_where_they_come_from(tmp_path, photos):
    done = run("audit", "--references", "--data", photos, "--seed", 5, "-o", tmp_path / "references.json")
    assert done.exit_code == 0 and "the mean image of the same class" in done.stdout
    said = json.loads((tmp_path / "references.json").read_text(encoding="utf-8"))
    assert said["references"][3]["name"] == "the mean image of the same class" and said["references"][3]["bits"] == 0
    measured = said["measured"]
    assert (measured["train"]["data"], measured["train"]["images"], measured["seed"]) == (str(photos), 160, 5)
    assert len(measured["test"]["data_sha256"]) == 64


def test_a_reading_kit_is_made_of_an_audit_and_scored(tmp_path, photos):
    from fakes import fake_audit
    from sfumato.lab.data import load_train_test

    train, test, _ = load_train_test(str(photos), size=(SIDE, SIDE))
    hashes = {"train": train.sha256, "test": test.sha256}
    facts = {"source": str(photos), "train_images": len(train), "test_images": len(test), "sha256": hashes}
    found = fake_audit(data=facts, target={"height": SIDE, "width": SIDE})
    folder = tmp_path / "mine"
    (folder / "work").mkdir(parents=True)
    found.write(folder / "audit.json")
    done = run("audit", folder, "--reading-kit")
    assert "holds no reconstructions" in str(done.exception)
    save_file({"reconstructed": test.images.contiguous()}, folder / "work" / f"{found.best.key}-all.safetensors")
    done = run("audit", folder, "--reading-kit", "--seed", 3, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["questions"] == 40 and said["page"] == str(folder / "reading-kit" / "reading-kit.html")
    key = json.loads((folder / "reading-kit" / "key.json").read_text())
    assert key["seed"] == 3
    answers = {"schema": "sfumato.readings/1", "kit": said["kit"], "reader": "a", "answers": [0] * 40}
    (tmp_path / "a.json").write_text(json.dumps(answers | {"answers": [one["answer"] for one in key["questions"]]}))
    (tmp_path / "b.json").write_text(json.dumps(answers))
    scored = ["audit", folder / "reading-kit", "--score-readings", "a.json", "--score-readings", "b.json"]
    done = run(*scored, "-o", tmp_path / "scores.json")
    assert done.exit_code == 0 and "recognised" in done.stdout and "2 readers" in done.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["by_reader"]["a.json"] == 1
    assert json.loads(run(*scored, "--json").stdout)["kit"] == said["kit"]
    for arguments, message in (
        (("--reading-kit",), "needs the folder of an audit"),
        (("--score-readings", "a.json"), "needs the folder of the kit"),
        ((folder, "--reading-kit", "--budget", "full"), "--budget: not with --reading-kit"),
        ((folder, "--reading-kit"), "holds a reading kit already"),
    ):
        assert message in str(run("audit", *arguments).exception)
