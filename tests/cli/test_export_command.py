"""`export --to int8` as a person runs it, in this process."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from scenes import TINY
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.cli import commands, export  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import SfumatoError
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit import budget
from sfumato.lab.audit.budget import Trial
from sfumato.lab.data import load_train_test
from sfumato.lab.export import int8
from synthetic import CLASSES, save_folder

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("data") / "my photos", train=40, test=12, size=(24, 32))


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, f"{words}: {done.output} {done.exception!r}"
    return done


def refused(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert isinstance(done.exception, SfumatoError), f"{words}: {done.output} {done.exception!r}"
    return str(done.exception)


@pytest.fixture(scope="module")
def words(trained: tuple[Bundle, Bundle], photos: Path) -> list[object]:
    classifier, obfuscator = trained
    return ["export", "--to", "int8", obfuscator.path, "--classifier", classifier.path, "--data", photos]


@pytest.mark.long
def test_the_bundle_is_made_measured_and_then_audited(words, trained, tmp_path, monkeypatch):
    trials = (Trial("least squares", Threat.WHITE_BOX), Trial("total variation", Threat.WHITE_BOX, steps=4))
    brief = replace(TINY, trials=trials, views=(), sanity_check_images=0, identification_images=32)
    monkeypatch.setitem(budget.BUDGETS, "standard", brief)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # else the audit starts the process again
    out = tmp_path / "runs" / "int8"
    said = run(*words, "-o", out).output
    assert (
        f"bundle: {out}" in said and "made of small-o (sha256:" in said and "calibrated on 40 training images" in said
    )
    assert "accuracy in the cloud: " in said and "of 12 test images" in said
    assert "leakage: not audited" in said
    made = Bundle.load(out, kind="obfuscator")
    assert made.figures.test_images == 12 and made.figures.audit is None
    following = shlex.split(said.splitlines()[-1].removeprefix("next: "))
    assert following[:3] == ["sfumato", "audit", str(out)] and following[-2:] == ["--budget", "standard"]
    run(*following[1:], "-o", tmp_path / "audit")
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["target"]["fingerprint"] == made.files[OBFUSCATOR_ONNX] and found["target"]["gradients"]
    done = {trial["attacker"]: trial["status"] for trial in found["trials"]}
    assert done == dict.fromkeys(("least squares", "total variation", "joint deobfuscator"), "done")
    assert found["utility"]["accuracy_obfuscated"] == pytest.approx(made.figures.accuracy_obfuscated)
    assert Bundle.load(out).figures.audit is not None, "now it has one of its own"
    assert Bundle.load(trained[1].path).figures.audit is None


def test_for_scripts(words, tmp_path):
    done = run(*words, "-o", tmp_path / "int8", "--json", "--calibrate-on", 6, "--images", 5)
    said = json.loads(done.stdout)
    assert said["audited"] is False and said["quantized"]["calibrated_on"] == 6
    assert said["figures"]["test_images"] == 5 and said["next"].startswith("sfumato audit ")
    assert said["figures"] == Bundle.load(tmp_path / "int8").figures.to_json()


def test_it_is_calibrated_on_training_images_of_all_classes(words, photos, tmp_path, monkeypatch):
    seen = []

    def stop(plain: Path, out: Path, calibration: Any, **_: object) -> None:
        seen.append(calibration)
        raise SfumatoError("stop")

    monkeypatch.setattr(int8, "quantize_file", stop)
    assert refused(*words, "-o", tmp_path / "int8", "--calibrate-on", 12) == "stop"
    train, test, _ = load_train_test(str(photos), size=(32, 32))
    assert train.sha256 != test.sha256 and seen[0].sha256 == train.subset(12).sha256
    assert (seen[0].images == train.images[:12]).all()
    assert len(set(seen[0].labels.tolist())) == len(CLASSES), "a folder comes sorted by class"


def test_the_default_number_is_the_librarys():
    parameters = inspect.signature(export.export).parameters
    assert parameters["calibrate_on"].default == int8.CALIBRATED_ON


def test_what_it_is_not_made_for(words, trained, tmp_path):
    file = trained[1].file(OBFUSCATOR_ONNX)
    assert "is a file; name the folder of its bundle" in refused(
        "export", "--to", "int8", file, "-o", tmp_path / "int8"
    )
    assert "'classifier'; one of kind 'obfuscator'" in refused(
        "export", "--to", "int8", trained[0].path, "-o", tmp_path / "int8"
    )
    assert "exists already" in refused(*words, "-o", trained[1].path)
    assert "holds something else" in refused(*words, "-o", trained[1].path, "--overwrite")
    other, _ = tiny.save_bundles(tmp_path / "pair")
    assert "was trained for classifier" in refused(
        "export", "--to", "int8", other.path, *words[4:], "-o", tmp_path / "int8"
    )
    assert not (tmp_path / "int8").exists()


def test_a_missing_library_is_said(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "sfumato.lab.export.int8")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'sfumato[train]'" in refused("export", "--to", "int8", "-o", tmp_path / "int8")


def test_a_devices_bundle_is_made_of_one_with_everything(tmp_path):
    sample = shipped.obfuscator_bundle()
    said = run("export", "--device", sample, "-o", tmp_path / "mine").output
    assert "left out: deobfuscator.onnx, obfuscator.safetensors" in said
    assert set(Bundle.load(tmp_path / "mine", kind="obfuscator").files) == {"obfuscator.onnx", "decoder.onnx"}
    said = json.loads(run("export", "--device", sample, "-o", tmp_path / "mine", "--overwrite", "--json").output)
    assert said["left_out"] == ["deobfuscator.onnx", "obfuscator.safetensors"]
    assert "not with --device" in refused("export", "--device", sample, "-o", tmp_path / "x", "--to", "int8")
