import shutil
from dataclasses import replace

import pytest

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import Provenance
from sfumato.errors import BundleError, TrainingError
from sfumato.lab.models.checkpoint import save_checkpoint
from sfumato.lab.runs.trainings import State, check_writable, finish_training, state_of
from sfumato.lab.training import Run
from sfumato.lab.training.recipe import parse_recipe


def test_a_run_is_missing_half_done_or_done(tmp_path, trained):
    run = Run(tmp_path / "run")
    assert state_of(run) == State("missing")
    run.folder.mkdir()
    save_checkpoint(run.checkpoint, {"epoch": 3})
    assert state_of(run) == State("half done", 3)
    assert state_of(run).of(20) == "half done: epoch 3 of 20"
    shutil.copytree(trained[0].path, run.bundle)
    assert state_of(run) == State("done") and State("done").of(20) == "done"


def test_a_bundle_without_its_figures_is_not_done(tmp_path, trained):
    run = Run(tmp_path / "run")
    shutil.copytree(trained[0].path, run.bundle)
    bundle = Bundle.load(run.bundle)
    replace(bundle, provenance=Provenance()).save()
    assert state_of(run).name == "missing"


def test_what_is_damaged_is_told(tmp_path, trained):
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="cannot be read"):
        state_of(run)
    recipe = parse_recipe({"kind": "classifier", "name": "x", "architecture": "resnet20", **trained_on(trained)})
    with pytest.raises(TrainingError, match=r"run: .*move it away to train from the start"):
        finish_training(recipe, run)
    shutil.copytree(trained[0].path, run.bundle)
    (run.bundle / "model.onnx").write_bytes(b"broken")
    with pytest.raises(BundleError, match="damaged"):
        state_of(run)


def trained_on(trained):
    return {"data": trained[0].recipe.data, "training": {"epochs": 1, "batch_size": 4}}


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        check_writable(tmp_path / "file")
