"""The demonstration with a gate: some images are handled on-device, the others are sent, and it says which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sfumato.apps.demo import Demonstration, run_demo
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.cli import commands  # noqa: F401  (importing it registers the commands)
from sfumato.cli.app import app
from sfumato.device import prepare
from tiny import LABELS, PREPROCESSING, logits, obfuscate, own_logits, save_bundles, save_obfuscator, sure_image

BLANK = (241, 243, 244)


def blank_pixels(panel: Path) -> int:
    with Image.open(panel) as image:
        return int((np.asarray(image) == BLANK).all(axis=2).sum())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    return save_bundles(tmp_path_factory.mktemp("gated"), threshold=0.95)


@pytest.fixture(scope="module")
def own_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "own.png"
    Image.fromarray(sure_image()).save(file)
    return file


@pytest.fixture(scope="module")
def shown(bundles: tuple[Bundle, Bundle], own_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    out = tmp_path_factory.mktemp("out")
    return run_demo([own_image], out, classifier=bundles[1].path, obfuscator=bundles[0].path)


def test_every_image_is_classified_where_the_gate_says(shown: Demonstration) -> None:
    samples = shipped.samples()
    unit = np.stack([prepare(pixels, PREPROCESSING) for pixels in (sure_image(), *(s.pixels for s in samples))])
    exponentials = np.exp(own_logits(unit))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    by_cloud = [LABELS[index] for index in logits(obfuscate(unit)).argmax(axis=1)]
    by_device = [LABELS[index] for index in exponentials.argmax(axis=1)]
    assert [row.prediction.predicted_by for row in shown.rows] == [
        "cloud" if p < 0.95 else "device" for p in probabilities
    ]
    for row, cloud, device in zip(shown.rows, by_cloud, by_device, strict=True):
        if row.prediction.predicted_by == "device":
            final = row.prediction
            assert (final.label, row.as_json()["obfuscated"]) == (device, None)
            assert (final.payload_bytes, final.round_trip_ms) == (0, 0)
        else:
            assert (row.prediction.label, row.as_json()["obfuscated"]) == (cloud, cloud)
            assert row.prediction.payload_bytes > 768
    assert {row.prediction.predicted_by for row in shown.rows} == {"device", "cloud"}


def test_the_tallies_count_what_the_rows_say(shown: Demonstration) -> None:
    truths = {sample.name: sample.label for sample in shipped.samples()}
    device, cloud, both = shown.tally("device"), shown.tally("cloud"), shown.tally()
    for where, tally in (("device", device), ("cloud", cloud)):
        rows = [row for row in shown.rows if row.prediction.predicted_by == where]
        assert tally.images == len(rows)
        assert tally.known == sum(row.image in truths for row in rows)
        assert tally.correct == sum(truths.get(row.image) == row.prediction.label for row in rows)
        assert tally.correct_on_originals == sum(truths.get(row.image) == row.original for row in rows)
    assert both.images == device.images + cloud.images == len(truths) + 1
    assert (both.known, both.correct) == (len(truths), device.correct + cloud.correct)
    assert shown.as_json()["on_device"]["images"] == device.images
    json.dumps(shown.as_json())


def test_the_panel_has_a_blank_place_for_each_image_that_is_not_sent(shown: Demonstration) -> None:
    local = sum(row.prediction.predicted_by == "device" for row in shown.rows[:12])
    assert 0 < local < 12
    # No deobfuscator, so one row in which they lack; the writing takes a part of each.
    assert 0.7 * local * 96**2 < blank_pixels(shown.panel) < local * 96**2


def test_with_a_deobfuscator_there_is_nothing_to_reconstruct_of_what_is_not_sent(tmp_path: Path) -> None:
    obfuscator, classifier = save_bundles(tmp_path, threshold=0.95)
    save_obfuscator(obfuscator.path / "deobfuscator.onnx")
    obfuscator = obfuscator.save()
    shown = run_demo([], tmp_path / "out", classifier=classifier.path, obfuscator=obfuscator.path)
    local = sum(row.prediction.predicted_by == "device" for row in shown.rows[:12])
    assert 0.7 * 2 * local * 96**2 < blank_pixels(shown.panel) < 2 * local * 96**2


@pytest.fixture
def installed(bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the gated bundle were the shipped one."""
    monkeypatch.setattr(shipped, "obfuscator_bundle", lambda: bundles[0].path)
    monkeypatch.setattr(shipped, "classifier_bundle", lambda: bundles[1].path)


@pytest.mark.usefixtures("installed")
def test_the_command_tells_where_each_was_answered(shown: Demonstration, own_image: Path, tmp_path: Path) -> None:
    arguments = ["demo", str(own_image), "-o", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    device, cloud, both = shown.tally("device"), shown.tally("cloud"), shown.tally()
    total = len(shown.rows)
    said = " ".join(done.stdout.split())
    assert "prediction by score" in said
    assert f"{device.images} of {total} handled on-device, nothing sent: {device.correct} of" in said
    assert f"{cloud.images} of {total} sent, obfuscated: {cloud.correct} of {cloud.known} correct" in said
    assert f"{both.correct} of {both.known} correct in all, {both.correct_on_originals} of {both.known} on the" in said
    assert "This is not encryption" in said
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [row["predicted_by"] for row in told["rows"]] == [row.prediction.predicted_by for row in shown.rows]
    assert told["gated"] is True
    assert (told["on_device"]["images"], told["sent"]["images"]) == (device.images, cloud.images)


def test_without_a_gate_everything_is_sent_and_no_blank_is_drawn(
    tiny_bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shipped, "obfuscator_bundle", lambda: tiny_bundles[0].path)
    monkeypatch.setattr(shipped, "classifier_bundle", lambda: tiny_bundles[1].path)
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)], env={"COLUMNS": "200"})
    assert "0 of " in done.stdout and "saw only what was sent, obfuscated" in done.stdout
    assert blank_pixels(tmp_path / "panel.png") == 0
