"""`frontier` of a folder and of a recipe, in this process."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from fakes import fake_audit
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import SfumatoError, TrainingError
from sfumato.lab.runs import speed
from sfumato.lab.sweep import jobs


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # else the command starts the process again
    monkeypatch.setattr(speed, "_image_seconds", lambda *_, **__: 1e-3)
    monkeypatch.setattr(speed, "decoder_seconds", lambda *_: 1e-3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audits").mkdir()
    for name, accuracy in (("good", 0.912), ("bad", 0.85)):
        made = fake_audit(utility={"accuracy_obfuscated": accuracy}, target={"name": name})
        made.write(tmp_path / "audits" / f"{name}.json")
    return tmp_path / "audits"


@pytest.fixture
def recipe(tmp_path, own_caches, trained, image_folder):
    path = tmp_path / "sketch.toml"
    path.write_text(
        f'kind = "sketch"\nname = "tiny"\nclassifier = "{trained[0].path}"\n[data]\nsource = "{image_folder}"\n'
        "[training]\nepochs = 2\n"
    )
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["frontier", *map(str, arguments)])


def test_a_folder_of_audits_is_compared_in_words_too(folder, tmp_path):
    done = run(folder, "--highlight", "good", "-o", tmp_path / "plots" / "frontier.png")
    assert done.exit_code == 0, done.output
    assert "Offloading pays off at 1 of 2 points" in done.stdout and "91.2 %" in done.stdout
    with Image.open(tmp_path / "plots" / "frontier.png") as plot:
        assert plot.width == 1600
    said = json.loads(run(folder, "--json").stdout)
    assert said["verdict"]["pays_off"] == "yes" and {"good", "bad"} <= {point["name"] for point in said["points"]}
    assert "no audit of 'ugly'" in str(run(folder, "--highlight", "ugly").exception)


def test_a_folder_without_audits_is_no_empty_table(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert "holds no audit" in str(run(tmp_path).exception)


def test_options_of_the_other_kind_are_refused(folder, recipe):
    for arguments, says in (
        ((folder, "--sweep", "code_bits=2,4", "--plan"), r"--plan, --sweep: only of a recipe"),
        ((folder, "--seeds", 3), r"--seeds: only of a recipe"),
        ((recipe, "--highlight", "good"), r"--highlight: only of a folder"),
        ((recipe, "--parallel", 2), r"--parallel: only with --engine ray"),
        ((recipe.with_suffix(".json"),), r"not a folder"),
        ((recipe.with_name("none.toml"),), r"cannot be read"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, SfumatoError) and says in str(done.exception), done.output


def test_the_plan_lists_the_points_and_their_time(recipe, tmp_path):
    done = run(recipe, "--sweep", "code_bits=2,4", "--seeds", 2, "-o", tmp_path / "out", "--plan")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["code_bits-2-seed0", "audit of code_bits-2-seed0"]
    assert len(lines) == 9 and "missing, about" in lines[0] and lines[-1].startswith("in all about")
    assert not (tmp_path / "out").exists()
    said = json.loads(run(recipe, "--plan", "--json", "-o", tmp_path / "out").stdout)
    assert [entry["what"] for entry in said["plan"]] == ["seed0", "audit of seed0"]


def test_points_that_fail_end_with_their_reasons(recipe, tmp_path, monkeypatch):
    def failing(job, **_):
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(jobs, "make", failing)
    done = run(recipe, "--sweep", "code_bits=2,4", "-o", tmp_path / "out")
    assert "no point of the sweep could be made: the loss is nan" in str(done.exception)
    assert "[2/2] code_bits-4-seed0" in done.stderr


def test_without_ray_it_is_said_how_to_get_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sfumato.lab.sweep.ray", raising=False)
    done = run(recipe, "--engine", "ray", "-o", tmp_path / "out")
    assert "ray is not installed; run: pip install 'sfumato[ray]'" in str(done.exception)
