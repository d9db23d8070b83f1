"""Sweeps whose points are made up on the spot, to see what is made, kept and said; and one made for real."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import tiny
from fakes import fake_audit, gate
from scenes import BRIEF
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, CLASSIFIER_WEIGHTS, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import (
    AuditError,
    BundleError,
    ClassifierError,
    DataError,
    Interrupted,
    RecipeError,
    ResultsError,
    SfumatoError,
    TrainingError,
)
from sfumato.lab.audit import run as audit_run
from sfumato.lab.export.onnx import save_weights
from sfumato.lab.models import build_classifier
from sfumato.lab.models.checkpoint import save_checkpoint
from sfumato.lab.runs import speed, trainings
from sfumato.lab.runs.audits import findings
from sfumato.lab.sweep import jobs
from sfumato.lab.sweep.jobs import is_done
from sfumato.lab.sweep.plan import listing, plan_sweep
from sfumato.lab.sweep.run import _rows, run_sweep
from sfumato.lab.sweep.schema import read_frontier
from sfumato.lab.training import Run
from synthetic import CLASSES, save_folder

SIZE = Preprocessing(tiny.SIZE, tiny.SIZE, (0.5,) * 3, (0.25,) * 3)
LOCAL_ACCURACY, PLAIN_ACCURACY, LABEL_ONLY = 0.89, 0.9138, 0.0574


def bundle_of(folder: Path, kind: str, recipe: dict, classifier: str | None = None) -> Bundle:
    """A bundle as training leaves it, of networks that nobody trained."""
    if kind == "classifier":
        file = tiny.save_classifier(folder / CLASSIFIER_ONNX)
        save_weights(build_classifier("resnet20", len(CLASSES)), folder / CLASSIFIER_WEIGHTS)
    else:
        file = tiny.save_obfuscator(folder / OBFUSCATOR_ONNX)
    return Bundle(
        path=folder, kind=kind, name="tiny", labels=CLASSES, preprocessing=SIZE, recipe=RecipeRecord.from_json(recipe),
        classifier_fingerprint=classifier or fingerprint(file), provenance=provenance(seed=0),
    ).save()  # fmt: skip


class Made:
    """Stands in for training and audits, and keeps account of what it was asked for.

    Attributes:
        trained: names of runs.
        audited: names of obfuscators.
        stop_at: the name of a run whose next training is interrupted half done.
        stop_audit_at: the name of one whose next audit is.
    """

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.audited: list[str] = []
        self.stop_at: str | None = None
        self.stop_audit_at: str | None = None

    def train(self, recipe, folder, *, resume=False, progress=None, say=print, start=None, until=None):
        self.trained.append(folder.name)
        run = Run(folder)
        assert resume == run.checkpoint.exists()
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(run.checkpoint, {"epoch": 1})
        if self.stop_at == folder.name:
            self.stop_at = None
            raise Interrupted("interrupted")
        if recipe.kind == "classifier":
            return bundle_of(run.bundle, "classifier", recipe.model_dump(mode="json"))
        known = Bundle.load(recipe.classifier).classifier_fingerprint
        return bundle_of(run.bundle, "obfuscator", recipe.model_dump(mode="json"), known)

    def audit(self, setting, budget, folder, *, comparison, device, progress):
        """2 bits: accuracy 86 % at leakage 0; 4 bits: 91 % at leakage 0.1; each seed a tenth of a point better."""
        bundle = Bundle.load(folder.parent / "bundle")
        self.audited.append(folder.parent.name)
        local = comparison.local
        identity = {"classifier": comparison.classifier.classifier_fingerprint, "budget": repr(budget)}
        write_json(findings(folder), identity | {"local": local.classifier_fingerprint if local else None})
        if self.stop_audit_at == folder.parent.name:
            self.stop_audit_at = None
            raise Interrupted("interrupted")
        many = bundle.recipe.code_bits > 2
        accuracy = (0.91 if many else 0.86) + 0.001 * bundle.recipe.to_json()["training"]["seed"]
        found = fake_audit(
            mse=LABEL_ONLY * (0.9 if many else 1),
            target={"name": bundle.recipe.name, "fingerprint": bundle.files[OBFUSCATOR_ONNX]},
            data={"source": bundle.recipe.to_json()["data"]["source"]},
            budget={"name": budget.name},
            utility={"accuracy_obfuscated": accuracy, "accuracy_local": LOCAL_ACCURACY if local else None},
        )
        found.write(folder / "audit.json")
        return found


@pytest.fixture
def made(monkeypatch):
    stands_in = Made()
    monkeypatch.setattr(trainings, "train", stands_in.train)
    monkeypatch.setattr(jobs, "finish_audit", stands_in.audit)
    monkeypatch.setattr(jobs, "bundle_target", lambda bundle: None)
    monkeypatch.setattr(speed, "_image_seconds", lambda *_, **__: 1e-3)
    monkeypatch.setattr(speed, "decoder_seconds", lambda *_: 1e-3)
    return stands_in


@dataclasses.dataclass
class Place:
    """Where a sweep's inputs lie."""

    sketch: Path
    local_recipe: Path
    local: Path
    images: Path

    def plan(self, out: Path, **changes):
        defaults = {"budget": BRIEF, "dials": ["code_bits=2,4"], "seeds": 2, "local": self.local}
        return plan_sweep(self.sketch, out, **(defaults | changes))


@pytest.fixture(scope="module")
def place(tmp_path_factory, own_caches):
    root = tmp_path_factory.mktemp("sweep")
    images = save_folder(root / "images", train=16, test=8, size=(tiny.SIZE, tiny.SIZE))
    recipe = {"kind": "classifier", "name": "home", "architecture": "resnet20"}
    for name in ("classifier", "local"):
        bundle_of(root / name, "classifier", recipe)
    common = f'[data]\nsource = "{images}"\n[training]\nepochs = 2\nbatch_size = 8\n'
    sketch, local = root / "sketch.toml", root / "local.toml"
    sketch.write_text(f'kind = "sketch"\nname = "tiny"\nclassifier = "{root / "classifier"}"\n{common}')
    local.write_text(f'kind = "classifier"\nname = "home"\narchitecture = "resnet20"\nteacher = "nowhere"\n{common}')
    return Place(sketch, local, root / "local", images)


NAMES = [f"code_bits-{bits}-seed{seed}" for bits in (2, 4) for seed in (0, 1)]


def test_every_point_is_made_once_and_then_nothing(place, made, tmp_path):
    sweep = place.plan(tmp_path / "out")
    assert [entry.state for entry in listing(sweep)] == ["missing"] * 8
    found = run_sweep(sweep)
    assert made.trained == made.audited == NAMES
    again = run_sweep(place.plan(tmp_path / "out"))
    assert made.trained == made.audited == NAMES
    assert again.frontier.model_copy(update={"provenance": {}}) == found.frontier.model_copy(update={"provenance": {}})
    assert {(entry.state, entry.seconds) for entry in listing(sweep)} == {("done", None)}
    for name, job in sweep.jobs.items():
        audit = json.loads((tmp_path / "out" / "audits" / f"{name}.json").read_text())
        assert audit == json.loads((job.audit_folder / "audit.json").read_text())
        assert audit["target"]["name"] == f"tiny-{name}"


def test_the_file_says_the_means_over_the_seeds_and_whether_they_pay_off(place, made, tmp_path):
    found = run_sweep(place.plan(tmp_path / "out"))
    frontier = read_frontier(found.file)
    assert frontier == found.frontier
    few, many = frontier.points
    assert (few.setting, many.setting) == ({"code_bits": "2"}, {"code_bits": "4"})
    assert few.accuracy.mean == pytest.approx(0.8605)
    assert few.accuracy.std == pytest.approx(0.001 / 2**0.5)
    assert many.excess_leakage.mean == pytest.approx(0.1)
    mixture = LOCAL_ACCURACY + 0.1 * (PLAIN_ACCURACY - LOCAL_ACCURACY)
    assert many.mixture.mean == pytest.approx(mixture)
    assert many.gain.mean == pytest.approx(0.9105 - mixture)
    assert (few.pays_off, many.pays_off, frontier.verdict.pays_off) == ("no", "yes", "yes")
    assert "at 1 of 2 points" in frontier.verdict.sentences[0]
    assert [Bundle.load(Path(run) / "bundle").recipe.code_bits for run in many.runs] == [4, 4]
    assert {"local", "identity"} <= {point.role for point in frontier.comparison}
    with Image.open(frontier.plot) as plot:
        assert plot.width == 1600


def test_a_gate_has_its_own_row(place, tmp_path):
    (setting,) = place.plan(tmp_path, dials=["code_bits=2"]).settings
    gated = gate(accuracy_gated=0.91, excess_leakage_mean=0.03)
    audits = {
        tmp_path / f"{name}.json": fake_audit(gate=gated, utility={"accuracy_obfuscated": accuracy})
        for name, accuracy in zip(setting.recipes, (0.9, 0.92), strict=True)
    }
    sending, gated = (one.row for one in _rows(setting, audits, {}))
    assert (sending.name, sending.seeds) == ("code_bits=2", 2)
    assert sending.accuracy.mean == pytest.approx(0.91) and sending.accuracy.std == pytest.approx(0.02 / 2**0.5)
    assert (gated.name, gated.accuracy.mean, gated.accuracy.std) == ("code_bits=2, gated", 0.91, 0)


def test_a_wider_dial_makes_only_what_is_new(place, made, tmp_path):
    run_sweep(place.plan(tmp_path / "out"))
    wider = place.plan(tmp_path / "out", dials=["code_bits=2,3,4"])
    assert [entry.state for entry in listing(wider)] == ["done"] * 4 + ["missing"] * 4 + ["done"] * 4
    assert len(run_sweep(wider).rows) == 3
    assert made.trained[4:] == made.audited[4:] == ["code_bits-3-seed0", "code_bits-3-seed1"]


def test_interrupted_anywhere_it_goes_on_to_the_same_points(place, made, tmp_path):
    whole = run_sweep(place.plan(tmp_path / "whole"))
    made.trained.clear()
    made.audited.clear()
    out = tmp_path / "out"
    made.stop_at = NAMES[1]
    with pytest.raises(Interrupted, match="the same command resumes"):
        run_sweep(place.plan(out))
    states = [entry.state for entry in listing(place.plan(out))]
    assert states == ["done", "done", "half done: epoch 1 of 2", "missing", *["missing"] * 4]
    made.stop_audit_at = NAMES[1]
    with pytest.raises(Interrupted, match="the same command resumes"):
        run_sweep(place.plan(out))
    assert [entry.state for entry in listing(place.plan(out))][:4] == ["done", "done", "done", "missing"]
    again = run_sweep(place.plan(out))
    assert made.trained == [NAMES[0], NAMES[1], *NAMES[1:]], "the second one went on, and no other was trained twice"
    assert made.audited == [NAMES[0], NAMES[1], *NAMES[1:]]
    assert again.rows == whole.rows


def test_a_point_that_fails_does_not_take_the_others_with_it(place, made, tmp_path):
    def failing(job):
        if "code_bits-2" in job.name:
            raise TrainingError("the loss is nan")
        jobs.make(job)

    lines = []
    found = run_sweep(place.plan(tmp_path / "out", seeds=1), make=failing, say=lines.append).frontier
    assert found.failed == {"code_bits-2-seed0": "the loss is nan"}
    assert {point.setting["code_bits"] for point in found.points} == {"4"}
    assert "code_bits-2-seed0" in found.verdict.sentences[-1]
    assert "code_bits-2-seed0 failed: the loss is nan" in lines
    with pytest.raises(AuditError, match="no point of the sweep could be made: the loss is nan"):
        run_sweep(place.plan(tmp_path / "none", dials=["code_bits=2"]), make=failing)


def test_without_a_classifier_on_the_device_it_is_said_what_is_lost(place, made, tmp_path):
    found = run_sweep(place.plan(tmp_path / "out", local=None)).frontier
    assert found.verdict.pays_off == "unknown" and "is not known" in found.verdict.sentences[0]
    assert found.on_device is None and "local" not in {point.role for point in found.comparison}
    with pytest.raises(AuditError, match="another on-device baseline; sweep into another folder"):
        run_sweep(place.plan(tmp_path / "out"))


def test_the_classifier_on_the_device_is_trained_first_if_there_is_a_recipe(place, made, tmp_path):
    changes = {"dials": ["code_bits=4"], "seeds": 1, "local": None, "local_recipe": place.local_recipe}
    sweep = place.plan(tmp_path / "out", **changes)
    assert [entry.what for entry in listing(sweep)] == ["local", "code_bits-4-seed0", "audit of code_bits-4-seed0"]
    found = run_sweep(sweep).frontier
    assert made.trained == ["local", "code_bits-4-seed0"]
    bundle = Bundle.load(tmp_path / "out" / "local" / "bundle", kind="classifier")
    assert bundle.recipe.to_json()["teacher"] == sweep.jobs["code_bits-4-seed0"].recipe.classifier
    assert bundle.recipe.to_json()["data"]["source"] == str(place.images)
    assert found.on_device == str(bundle.path)
    assert found.device.on_device_macs > 0 and "multiply-accumulates" in found.verdict.sentences[-1]


def test_other_audits_are_compared_if_they_are_for_the_same_classifier(place, made, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    data, target = {"source": str(place.images)}, {"kind": "baseline"}
    fake_audit(data=data, target=target | {"name": "blur"}).write(others / "blur.json")
    fake_audit(data=data, utility={"accuracy_plain": 0.95}, target=target).write(others / "other.json")
    lines = []
    found = run_sweep(place.plan(tmp_path / "out", compare_with=others), say=lines.append)
    assert [point.name for point in found.comparison if point.role == "baseline"] == ["blur"]
    assert [line for line in lines if "left out" in line and "other.json" in line]
    assert len(found.rows) == 2


def test_what_cannot_be_swept_is_told_before_anything_is_trained(place, made, tmp_path):
    out = tmp_path / "out"
    foreign = tiny.save_bundles(tmp_path / "bundles")[1].path
    (tmp_path / "audits").mkdir()
    fake_audit().write(tmp_path / "audits" / "a.json")
    bad: list[tuple[type[SfumatoError], str, dict]] = [
        (RecipeError, "unknown key 'code_bit'", {"dials": ["code_bit=2,4"]}),
        (RecipeError, "'code_bits'", {"dials": ["code_bits=2,400"]}),
        (RecipeError, "choose one", {"local_recipe": place.local_recipe}),
        (RecipeError, "takes the recipe of a classifier", {"local": None, "local_recipe": place.sketch}),
        (RecipeError, "has the classes cat, dog", {"local": foreign}),
        (BundleError, "nowhere", {"local": tmp_path / "nowhere"}),
        (ClassifierError, "gone", {"overrides": ['classifier="gone"']}),
        (DataError, "no data at", {"overrides": ['data.source="./gone"']}),
        (RecipeError, "images of", {"overrides": ["data.size=[16, 16]"]}),
        (RecipeError, "columns", {"overrides": ['data.label_column="label"']}),
        (AuditError, "not a folder", {"compare_with": tmp_path / "nowhere"}),
        (AuditError, "several data sets", {"compare_with": tmp_path / "audits"}),
    ]
    for error, says, changes in bad:
        with pytest.raises(error, match=says):
            place.plan(out, **changes)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        run_sweep(place.plan(tmp_path / "file" / "out"))
    assert made.trained == [] and not out.exists()


def test_a_folder_of_another_sweep_is_refused(place, made, tmp_path):
    sweep = place.plan(tmp_path / "out")
    run_sweep(sweep)
    with pytest.raises(TrainingError, match="trained by another recipe"):
        run_sweep(place.plan(tmp_path / "out", overrides=["training.epochs=1"]))
    with pytest.raises(AuditError, match="another budget"):
        run_sweep(place.plan(tmp_path / "out", budget=dataclasses.replace(BRIEF, test_images=10)))
    job = sweep.jobs["code_bits-2-seed0"]
    (job.audit_folder / "audit.json").write_text("{")
    with pytest.raises(AuditError, match="move it away"):
        is_done(job)
    shutil.rmtree(job.audit_folder)
    shutil.copytree(sweep.jobs["code_bits-4-seed0"].audit_folder, job.audit_folder)
    audit = json.loads((job.audit_folder / "audit.json").read_text())
    audit["target"]["fingerprint"] = "of another one"
    (job.audit_folder / "audit.json").write_text(json.dumps(audit))
    with pytest.raises(AuditError, match="another obfuscator"):
        is_done(job)
    assert made.trained == NAMES


@pytest.mark.long
def test_a_point_made_for_real_is_an_ordinary_run_with_an_ordinary_audit(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(audit_run, "decoder_checks", lambda *_, **__: ())  # tried elsewhere, and slow
    classifier, _ = trained
    recipe = tmp_path / "sketch.toml"
    recipe.write_text(
        f'kind = "sketch"\nname = "tiny"\nclassifier = "{classifier.path}"\ncode_bits = 2\nheld_out_images = 8\n'
        f'[data]\nsource = "{save_folder(tmp_path / "images", train=24, test=12)}"\n'
        '[training]\nepochs = 1\nbatch_size = 8\nschedule = "constant"\n'
    )
    found = run_sweep(plan_sweep(recipe, tmp_path / "out", BRIEF, local=classifier.path))
    bundle = Bundle.load(tmp_path / "out" / "points" / "seed0" / "bundle", kind="obfuscator")
    folder = tmp_path / "out" / "points" / "seed0" / "audit-quick"
    audit = json.loads((folder / "audit.json").read_text())
    assert bundle.figures.audit["best"] == audit["best"]
    assert found.rows[0].accuracy.mean == audit["utility"]["accuracy_obfuscated"]
    assert (folder / "audit.html").is_file() and found.rows[0].attackers == ("least squares",)
    assert is_done(plan_sweep(recipe, tmp_path / "out", BRIEF, local=classifier.path).jobs["seed0"])


def test_a_file_of_version_1_is_read(place, made, tmp_path):
    found = run_sweep(place.plan(tmp_path / "out"))
    content = json.loads(found.file.read_text())
    content["schema"] = "sfumato.frontier/1"
    for new, old in (("on_device", "local"), ("comparison", "beside")):
        content[old] = content.pop(new)
    content["device"]["local_macs"] = content["device"].pop("on_device_macs")
    content["budget"]["says"] = content["budget"].pop("description")
    for part in (*content["points"], content["verdict"]):
        part["worth"] = part.pop("pays_off")
    found.file.write_text(json.dumps(content))
    assert read_frontier(found.file) == found.frontier
    found.file.write_text("{}")
    with pytest.raises(ResultsError, match="not a file of schema"):
        read_frontier(found.file)
