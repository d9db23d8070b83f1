"""From recipes to the page, with networks and images of seconds."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reproduction.audits import known_audit, reconstructed_by_best
from reproduction.files import read_results
from reproduction.lab import Lab
from reproduction.listing import listing
from reproduction.optimum import plot_accuracy
from reproduction.plan import Item, Plan, SnapshotBudget, Target
from reproduction.reproduce import reproduce
from reproduction.schema import Epochs, Lambdas, Optimum, Table1, Table2, Table3, Table5
from scenes import BRIEF as QUICK
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import exclusive
from sfumato.artifacts.lab_files import lab_file
from sfumato.errors import AuditError, BundleError, Interrupted, ResultsError, TrainingError
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.evaluation.accuracy import evaluate_obfuscator
from sfumato.lab.runs import trainings
from sfumato.lab.training import engine
from synthetic import save_folder

pytestmark = pytest.mark.long  # trains a whole plan; the other files here are short
CPU = torch.device("cpu")
BRIEF = dataclasses.replace(QUICK, name="standard")


def plan(folder: Path, images: Path) -> Plan:
    """Two classifiers, an obfuscator for each, a local classifier and a sweep of one."""
    common = f'[data]\nsource = "{images}"\n[training]\nepochs = 2\nbatch_size = 8\nschedule = "constant"\n'
    classifier, obfuscator = folder / "classifier.toml", folder / "obfuscator.toml"
    classifier.write_text(f'kind = "classifier"\nname = "x"\narchitecture = "resnet20"\n{common}')
    obfuscator.write_text(f'kind = "obfuscator"\nname = "x"\nclassifier = "x"\n{common}')
    first = Item("trunk", str(classifier), ('architecture="obfuscator-trunk"',), teacher="one")
    trunk = first, dataclasses.replace(first, name="trunk-2", start="trunk")
    hides = str(obfuscator)
    return Plan(
        size="cpu",
        title="Tiny",
        description="tiny",
        classifiers=(
            Item("one", str(classifier)),
            Item("two", str(classifier)),
        ),
        obfuscators=(
            Item("one-obfuscator", hides, ("snapshots_every=1",), classifier="one", start="trunk-2"),
            Item("two-obfuscator", hides, classifier="two"),
        ),
        local=Item("local", str(classifier), ('architecture="vgg7"',), teacher="one"),
        sweep=(Item("lambda-1.0", hides, classifier="two"),),
        snapshots=SnapshotBudget(images=64, test_images=20),
        data=str(images),
        trunk=trunk,
    )


def in_lab(folder: Path, plan: Plan) -> Lab:
    return Lab(plan, folder, CPU)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, own_caches, trained):
    """(plan, lab, results, page) with everything made; all but the first pair was trained elsewhere and put there."""
    root = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "standard", BRIEF)
        made = plan(root, save_folder(root / "images", train=40, test=20))
        lab = in_lab(root / "lab", made)
        elsewhere = {"two": 0, "two-obfuscator": 1, "local": 0, "lambda-1.0": 1}
        for name, bundle in ((name, trained[which]) for name, which in elsewhere.items()):
            shutil.copytree(bundle.path.parent, lab.folder / name)
        reproduce(Target.ALL, lab, root / "results" / "reproduction", root / "docs" / "reproduction.md")
        yield made, lab, root / "results" / "reproduction", root / "docs" / "reproduction.md"


def test_everything_is_made_once_and_then_nothing(tiny, monkeypatch):
    made, lab, results, page = tiny
    before = page.read_text()
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    assert all(entry.state == "done" for entry in listing(lab, Target.TABLE_1))
    written = reproduce(Target.TABLE_3, in_lab(lab.folder, made), results, page)
    assert [path.name for path in written] == ["cpu-table3.json", "reproduction.md"]
    assert page.read_text() == before


def test_table_1_says_what_bundles_and_audits_say(tiny):
    _, lab, results, _ = tiny
    found = read_results(results, "cpu", Table1)
    for row, name in zip(found.rows, ("one", "two"), strict=True):
        obfuscator = Bundle.load(lab.folder / f"{name}-obfuscator" / "bundle")
        classifier = Bundle.load(lab.folder / name / "bundle")
        measured = evaluate_obfuscator(obfuscator, classifier, lab.test)
        assert row.accuracy_obfuscated == measured.accuracy_obfuscated
        assert row.accuracy_plain == measured.accuracy_plain
        audit = json.loads((lab.folder / "audits" / f"{name}-obfuscator" / "audit.json").read_text())
        assert row.audit.excess_leakage == audit["best"]["excess_leakage"]
        assert row.overhead_params == pytest.approx(324_518 / row.params)
        assert row.trained.obfuscator.epochs == {"one": 2, "two": 8}[name]
        begun = row.trained.obfuscator.begun
        assert (None if begun is None else begun.epochs) == {"one": 4, "two": None}[name]
        assert row.test_images == len(lab.test) == 20
    assert found.on_device.accuracy == Bundle.load(lab.folder / "local" / "bundle").figures.accuracy_plain


def test_the_diagonal_of_table_3_is_table_1(tiny):
    _, _, results, _ = tiny
    matrix = read_results(results, "cpu", Table3).accuracy
    rows = read_results(results, "cpu", Table1).rows
    assert [matrix[0][0], matrix[1][1]] == [row.accuracy_obfuscated for row in rows]
    assert len(matrix) == 2 and all(len(row) == 2 for row in matrix)


def test_the_optimum_follows_snapshots_and_lambda(tiny):
    _, lab, results, _ = tiny
    runs = read_results(results, "cpu", Epochs).runs
    assert [[row.epoch for row in run.epochs] for run in runs] == [[1, 2], [8]]
    last = runs[0].epochs[-1]
    bundle = Bundle.load(lab.folder / "one-obfuscator" / "bundle")
    assert last.accuracy_obfuscated == pytest.approx(bundle.figures.accuracy_obfuscated, abs=0.051)
    assert last.joint_mse == pytest.approx(bundle.figures.joint_deobfuscator_mse, rel=1e-3)
    assert last.adaptive_mse == min(attacker.mse for attacker in last.attackers)
    swept = read_results(results, "cpu", Lambdas).rows
    assert [row.trained.privacy_weight for row in swept] == [1.0]
    ends = read_results(results, "cpu", Optimum).references
    assert ends.plain_image.mean_colour > 0.9 and ends.class_mean.mean_colour > 0.9  # colour is the class here


def test_the_images_are_drawn_and_shown(tiny):
    _, _, results, page = tiny
    for kind in (Table2, Table5):
        for row in read_results(results, "cpu", kind).panels:
            drawn = page.parent / "reproduction" / row.file
            assert drawn.stat().st_size < 300_000
            assert f"(reproduction/{row.file})" in page.read_text()


def test_interrupted_in_training_it_goes_on_to_the_same_result(tiny, tmp_path, monkeypatch):
    made, lab, _, _ = tiny
    small = dataclasses.replace(made, classifiers=made.classifiers[:1], obfuscators=made.obfuscators[:1])
    shutil.copytree(lab.folder / "one", tmp_path / "lab" / "one")
    steps = []
    plain = engine.augmented

    def interrupting(*epoch):
        for batch in plain(*epoch):
            steps.append(1)
            if len(steps) == 7:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(engine, "augmented", interrupting)
        with pytest.raises(Interrupted, match="the same command resumes"):
            reproduce(Target.TABLE_3, in_lab(tmp_path / "lab", small), tmp_path / "results", tmp_path / "page.md")
    assert "half done: epoch 1 of 2" in [e.state for e in listing(in_lab(tmp_path / "lab", small), Target.TABLE_3)]
    reproduce(Target.TABLE_3, in_lab(tmp_path / "lab", small), tmp_path / "results", tmp_path / "page.md")
    again, whole = (Bundle.load(folder / "one-obfuscator" / "bundle") for folder in (tmp_path / "lab", lab.folder))
    assert (
        lab_file(again, "obfuscator.safetensors").read_bytes() == lab_file(whole, "obfuscator.safetensors").read_bytes()
    )


def test_an_audit_of_another_obfuscator_and_broken_bundles_are_refused(tiny, tmp_path):
    made, lab, _, _ = tiny
    copy = tmp_path / "lab"
    for name in ("one", "two", "one-obfuscator", "two-obfuscator", "local", "audits"):
        shutil.copytree(lab.folder / name, copy / name)
    shutil.rmtree(copy / "audits" / "one-obfuscator")
    shutil.copytree(copy / "audits" / "two-obfuscator", copy / "audits" / "one-obfuscator")
    with pytest.raises(AuditError, match="another obfuscator"):
        reproduce(Target.TABLE_1, in_lab(copy, made), tmp_path / "results", tmp_path / "page.md")
    shutil.rmtree(copy / "one")
    shutil.copytree(copy / "two", copy / "one")
    with pytest.raises(BundleError, match="another classifier"):
        reproduce(Target.TABLE_3, in_lab(copy, made), tmp_path / "results", tmp_path / "page.md")
    shutil.rmtree(copy / "one")
    shutil.copytree(lab.folder / "one", copy / "one")
    (copy / "two" / "bundle" / "model.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match="changed or damaged"):
        reproduce(Target.TABLE_3, in_lab(copy, made), tmp_path / "results", tmp_path / "page.md")


def test_an_audit_of_an_earlier_version_is_read_with_its_images(tiny, tmp_path):
    made, lab, _, _ = tiny
    for name in ("one", "one-obfuscator", "audits"):
        shutil.copytree(lab.folder / name, tmp_path / name)
    folder = tmp_path / "audits" / "one-obfuscator"
    content = (folder / "audit.json").read_text()
    (folder / "audit.json").write_text(content.replace("_images", "_pictures").replace("images_seen", "pictures_seen"))
    (kept,) = (folder / "work").glob("*-all.safetensors")
    save_file({"restored": load_file(kept)["reconstructed"]}, kept)
    old, item = in_lab(tmp_path, made), made.obfuscators[0]
    assert known_audit(old, item) == known_audit(lab, item)
    assert torch.equal(reconstructed_by_best(old, item, 5), reconstructed_by_best(lab, item, 5))


def test_the_tables_are_written_as_soon_as_a_row_is_made(tiny, tmp_path, monkeypatch):
    made, lab, _, _ = tiny
    for name in ("one", "trunk", "trunk-2", "one-obfuscator", "audits"):
        shutil.copytree(lab.folder / name, tmp_path / "lab" / name)
    shutil.copytree(lab.folder / "two", tmp_path / "lab" / "two")
    shutil.rmtree(tmp_path / "lab" / "audits" / "one-obfuscator")

    def broken_off(*_, **__):
        raise Interrupted("interrupted")

    monkeypatch.setattr(trainings, "train", broken_off)  # when the second row's obfuscator is to be trained
    said = []
    with pytest.raises(Interrupted, match="the same command resumes"):
        reproduce(Target.ALL, in_lab(tmp_path / "lab", made), tmp_path / "r", tmp_path / "page.md", say=said.append)
    first = read_results(tmp_path / "r", "cpu", Table1)
    assert [row.classifier for row in first.rows] == ["one"] and first.on_device is None
    assert read_results(tmp_path / "r", "cpu", Table3).names == ("one",)
    assert read_results(tmp_path / "r", "cpu", Lambdas) is None
    assert "| one " in (tmp_path / "page.md").read_text()
    assert any(line.startswith("[2/4] two-obfuscator: missing") and "about" in line for line in said)

    said.clear()
    (tmp_path / "r" / "cpu-epochs.json").unlink()
    with pytest.raises(Interrupted, match="the same command resumes"):
        reproduce(Target.ALL, in_lab(tmp_path / "lab", made), tmp_path / "r", tmp_path / "page.md", say=said.append)
    assert [run.obfuscator for run in read_results(tmp_path / "r", "cpu", Epochs).runs] == ["one-obfuscator"]
    with pytest.raises(Interrupted, match="the same command resumes"):
        reproduce(Target.ALL, in_lab(tmp_path / "lab", made), tmp_path / "r", tmp_path / "page.md", say=said.append)
    assert said.count("measuring epochs") == 1  # not again: nothing is lacking


def test_a_second_queue_is_refused_while_the_first_is_at_work(tiny, tmp_path):
    made, lab, _, _ = tiny
    with exclusive(lab.folder, TrainingError), pytest.raises(TrainingError, match="another process is at work"):
        reproduce(Target.TABLE_4, lab, tmp_path / "r", tmp_path / "page.md")
    reproduce(Target.TABLE_4, in_lab(lab.folder, made), tmp_path / "r", tmp_path / "page.md")


def test_the_curve_shows_the_validations_that_trainings_kept(tiny, tmp_path):
    _, _, results, page = tiny
    found = read_results(results, "cpu", Epochs)
    history = found.runs[0].trained.history
    assert [one.epoch for one in history] == [1, 2] and all(0 <= one.accuracy <= 1 for one in history)
    drawn = page.parent / "reproduction" / found.curve
    assert drawn.stat().st_size > 1_000 and f"(reproduction/{found.curve})" in page.read_text()
    run = found.runs[0]
    silent = run.model_copy(update={"trained": run.trained.model_copy(update={"history": None})})
    assert plot_accuracy([silent], tmp_path / "no.png") is None
    with pytest.raises(ResultsError, match="cannot be written"):
        (tmp_path / "file").touch()
        plot_accuracy(found.runs, tmp_path / "file" / "x.png")


def test_a_lab_that_cannot_be_written_is_named_at_once(tmp_path, tiny):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"the folder .* cannot be written"):
        reproduce(Target.TABLE_4, in_lab(tmp_path / "file", tiny[0]), tmp_path / "results", tmp_path / "page.md")
