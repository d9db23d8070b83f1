"""`classify` and `doctor` at an endpoint that takes image files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import tiny
from file_endpoint import FileEndpoint
from recording import recording
from sfumato.artifacts.bundle import Bundle
from sfumato.cli import commands  # noqa: F401  (registers them)
from sfumato.cli.app import app


def sfumato(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    return tiny.save_bundles(tmp_path_factory.mktemp("8-bit"), "8-bit")


@pytest.fixture
def at() -> FileEndpoint:
    return FileEndpoint(tiny.logits, tiny.LABELS, tiny.PREPROCESSING, reply=lambda found: {"result": found})


@pytest.fixture
def url(at: FileEndpoint) -> Iterator[str]:
    with recording(v1=at) as server:
        yield f"{server.url}/v1"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(tiny.image(5)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize(
    ("style", "more"),
    [
        ("form", []),
        ("body", ["--file-format", "webp"]),
        ("json", ["--template", '{"file": "{base64}", "kind": "{type}"}', "--file-format", "png"]),
    ],
)
def test_classify_sends_files(style: str, more: list[str], pair: Any, at: FileEndpoint, url: str, image: Path) -> None:
    arguments = [
        "classify",
        image,
        "--server",
        url,
        "--bundle",
        pair[0].path,
        "--files",
        style,
        "--response-path",
        "result",
    ]
    done = sfumato(*arguments, *more, "--json", "--top", 2)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["model"], told["fingerprint"], told["failed"]) == (None, "unknown", [])
    (answer,) = told["predictions"]
    assert answer["predicted_by"] == "cloud" and answer["top"][0]["label"] == answer["label"]
    np.testing.assert_array_equal(at.images(), [tiny.negative(tiny.image(5))])
    assert "1 sent, obfuscated" in sfumato(*arguments, *more).stdout


def test_a_label_without_a_score(pair: Any, at: FileEndpoint, url: str, image: Path) -> None:
    arguments = ["classify", image, "--server", url, "--bundle", pair[0].path, "--files", "form"]
    arguments += ["--response-path", "result.0.label"]
    assert "no score" in sfumato(*arguments).stdout
    (answer,) = json.loads(sfumato(*arguments, "--json").stdout)["predictions"]
    assert answer["probability"] is None and answer["top"] == [{"label": answer["label"], "probability": None}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--response-path", "result"], "without --files"),
        (["--round"], "without --files"),
        (["--response-keys", "a,b"], "without --files"),
        (["--files", "json", "--template", "{base64}"], "not JSON"),
        (["--files", "form", "--response-keys", "label"], "two names"),
        (["--files", "form", "--model", "resnet"], "Open Inference Protocol"),
        (["--files", "form", "--split"], "Open Inference Protocol"),
    ],
)
@pytest.mark.parametrize("command", ["classify", "doctor"])
def test_options_that_do_not_go_together(
    command: str, options: list[str], said: str, pair: Any, at: FileEndpoint, url: str, image: Path
) -> None:
    if command == "doctor" and "--split" in options:
        pytest.skip("it has no such option")
    arguments = ["doctor", pair[0].path] if command == "doctor" else ["classify", image, "--bundle", pair[0].path]
    done = sfumato(*arguments, "--server", url, *options)
    assert done.exit_code == 1 and said in str(done.exception) and not at.files


def test_doctor_examines_it(pair: Any, at: FileEndpoint, url: str) -> None:
    arguments = ["doctor", pair[0].path, "--server", url, "--classifier", pair[1].path, "--files", "json"]
    done = sfumato(*arguments, "--response-path", "result", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"] and len(at.files) == 8
    done = sfumato(*arguments)  # looks in the wrong place
    assert done.exit_code == 1 and "no string under 'label'; it has 'result'" in " ".join(done.stdout.split())
