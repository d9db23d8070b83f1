"""From an endpoint's address to a bundle, over a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sfumato import cloud
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.device import Client
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import load_images
from sfumato.lab.training.blackbox import protect_black_box
from sfumato.lab.training.engine import Options
from sfumato.lab.training.recipe import parse_recipe


def recipe(kind: str, url: str, folder: Path, **box: Any) -> Any:
    sketch = {"held_out_images": 16, "code_bits": 3} if kind == "sketch" else {}
    black_box = {"model": "small", "queries": 160, "images_seen": 200, "surrogates": ["resnet-local"], "rate": 1e6}
    return parse_recipe(
        {
            "kind": kind,
            "name": "unseen",
            "classifier": url,
            "data": {"source": str(folder)},
            "training": {"epochs": 2, "batch_size": 8, "schedule": "constant"},
            "black_box": {**black_box, **box},
            **sketch,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from synthetic import save_folder

    return save_folder(tmp_path_factory.mktemp("public"), train=96, test=8)


pytestmark = pytest.mark.long  # trains for an endpoint; `test_oracle` and `test_tuning` are short


@pytest.fixture(scope="module")
def url(trained: tuple[Bundle, Bundle]) -> Any:
    with cloud.running([cloud.ServedModel(trained[0].path)]) as address:
        yield address


def test_a_sketch_for_an_endpoint_whose_weights_nobody_has(url: str, folder: Path, tmp_path: Path) -> None:
    bundle = protect_black_box(recipe("sketch", url, folder), tmp_path / "run", Options("cpu"))
    figures = bundle.figures.to_json()
    assert figures["queries"] <= 160 and figures["queries_learning"] == 96
    assert 0 <= figures["agreement_before_tuning"] <= figures["agreement_after_tuning"] <= 1
    test = load_images(str(folder), "test")
    with Client(url, bundle.path, gate=False) as client:  # the endpoint states a fingerprint, and no warning comes
        answers = client.classify_batch([row.permute(1, 2, 0).numpy() for row in test.images])
    right = np.mean([answer.label == test.names[label] for answer, label in zip(answers, test.labels, strict=True)])
    assert figures["accuracy_obfuscated"] == pytest.approx(right)
    assert client.fingerprint == "match"
    again = protect_black_box(recipe("sketch", url, folder), tmp_path / "run", Options("cpu", resume=True))
    assert again.figures.queries == figures["queries"]  # all of it was known


def test_a_class_map_says_which_outputs_are_the_classes(url: str, folder: Path, tmp_path: Path) -> None:
    """In another order than the endpoint's."""
    (tmp_path / "map.toml").write_text("date = 3\napple = 0\ncherry = 2\nbanana = 1\n")
    plan = recipe("sketch", url, folder, class_map=str(tmp_path / "map.toml"))
    bundle = protect_black_box(plan, tmp_path / "run", Options("cpu"))
    assert bundle.labels == ("date", "apple", "cherry", "banana")
    assert bundle.class_map == ClassMap(4, ((3,), (0,), (2,), (1,)))
    test = load_images(str(folder), "test")
    with Client(url, bundle.path, gate=False) as client:
        found = client.classify_batch([row.permute(1, 2, 0).numpy() for row in test.images])
    right = np.mean([one.label == test.names[label] for one, label in zip(found, test.labels, strict=True)])
    assert bundle.figures.to_json()["accuracy_obfuscated"] == pytest.approx(right)


@pytest.mark.parametrize("answers", ["scores", "label"])
def test_photographs_are_those_that_the_endpoint_itself_answered(
    url: str, trained: tuple[Bundle, Bundle], folder: Path, tmp_path: Path, answers: str
) -> None:
    plan = recipe("sketch", url, folder, answers=answers, queries=100).model_copy(update={"decoder": "photographs"})
    bundle = protect_black_box(plan, tmp_path / "run", Options("cpu"))
    assert bundle.figures.queries == bundle.figures.queries_learning == 96  # nothing was asked a second time
    endpoint = OnnxFunction(trained[0].file("model.onnx"))
    asked, test = (load_images(str(folder), split) for split in ("train", "test"))
    scale = bundle.preprocessing.normalize
    answered = set(endpoint(scale(asked.images.numpy().astype(np.float32) / 255)).argmax(axis=1).tolist())
    drawings, own, _ = OnnxFunction(bundle.file("obfuscator.onnx")).all(test.images.numpy().astype(np.float32) / 255)
    there, here = endpoint(drawings).argmax(axis=1), own.argmax(axis=1)
    assert all(a == b for a, b in zip(there.tolist(), here.tolist(), strict=True) if b in answered)


def test_an_obfuscator_without_codes_is_trained_on_surrogates_alone(url: str, folder: Path, tmp_path: Path) -> None:
    bundle = protect_black_box(recipe("obfuscator", url, folder, answers="label"), tmp_path / "run", Options("cpu"))
    assert bundle.name == "small" and "queries_tuning" not in bundle.figures.others
    with Client(url, bundle.path) as client:
        assert client.check().fingerprint == "match"


def test_an_endpoint_needs_a_model_and_a_folder_that_is_free(url: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"black_box\.model"):
        protect_black_box(recipe("sketch", url, folder, model=""), tmp_path / "a", Options())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "something").touch()
    with pytest.raises(TrainingError, match="--resume"):
        protect_black_box(recipe("sketch", url, folder), tmp_path / "b", Options())


def test_the_command_says_what_will_be_sent_where(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "sketch.toml"
    file.write_text('kind = "sketch"\nname = "x"\nclassifier = "later"\n[data]\nsource = "' + str(folder) + '"\n')
    done = CliRunner(env={"MALLOC_MMAP_THRESHOLD_": "1"}).invoke(
        app,
        ["train", str(file), "--black-box", "http://127.0.0.1:9", "--out", str(tmp_path / "run"),
         "--set", "black_box.model=m", "--set", "black_box.queries=500"],
    )  # fmt: skip
    assert done.exit_code != 0
    assert "up to 500 images" in done.stderr and "http://127.0.0.1:9" in done.stderr and "public" in done.stderr
