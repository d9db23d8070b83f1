"""Other classifiers' predictions for an obfuscator's payload, against torch and numpy by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tiny
from fakes import fake_audit
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.errors import BundleError
from sfumato.lab.audit.points import leakage_of
from sfumato.lab.data import load_images
from sfumato.lab.evaluation.transfer import Transfer, TransferObfuscator, transfer


def test_the_payload_is_normalised_for_each_classifier(trained: Any, image_folder: Path) -> None:
    classifier, obfuscator = trained
    size = classifier.preprocessing
    # The same classifier behind a server that normalises otherwise: it then sees another image than its own input.
    shifted = replace(classifier, preprocessing=replace(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    test = load_images(str(image_folder), "test")
    found = transfer([obfuscator], [classifier, shifted], test)
    from sfumato.artifacts.onnx_file import OnnxFunction

    images = test.images.numpy().astype(np.float32) / 255
    predict, obfuscate = OnnxFunction(classifier.file("model.onnx")), OnnxFunction(obfuscator.file("obfuscator.onnx"))
    own = obfuscate(images)
    raw = own * np.array(size.std, np.float32)[:, None, None] + np.array(size.mean, np.float32)[:, None, None]
    labels = test.of_classes(classifier.labels).labels.numpy()
    wanted = [float((predict(x).argmax(axis=1) == labels).mean()) for x in (own, raw)]
    assert found.obfuscators[0].accuracy == pytest.approx(wanted)
    assert found.obfuscators[0].trained_for == (True, True)
    assert found.classifiers[0].accuracy_plain == classifier.figures.accuracy_plain
    assert found.obfuscators[0].leakage is None
    assert Transfer.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_audits_are_found_by_the_file_they_attacked(trained: Any, image_folder: Path) -> None:
    classifier, obfuscator = trained
    audit = fake_audit(
        target={"name": "whatever", "fingerprint": obfuscator.files["obfuscator.onnx"]}, budget={"name": "quick"}
    )
    best = audit.best.model_copy(update={"excess_leakage": 0.25, "attacker": "least squares"})
    test = load_images(str(image_folder), "test")
    found = leakage_of(audit.model_copy(update={"best": best}))
    assert (found.excess_leakage, found.best_attacker, found.budget) == (0.25, "least squares", "quick")
    (row,) = transfer([obfuscator], [classifier], test, leakages=[found]).obfuscators
    assert row.leakage == found


def test_other_classes_or_sizes_are_refused(trained: Any, image_folder: Path, tiny_bundles: Any) -> None:
    classifier, obfuscator = trained
    test = load_images(str(image_folder), "test")
    with pytest.raises(BundleError, match="8x8"):
        transfer([obfuscator], [classifier, tiny_bundles[1]], test)
    with pytest.raises(BundleError, match="classes"):
        transfer([obfuscator], [classifier, replace(classifier, labels=("a", "b", "c", "d"))], test)


def test_denormalize_undoes_normalize() -> None:
    size = Preprocessing(4, 4, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    images = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    assert np.allclose(size.denormalize(size.normalize(images)), images, atol=1e-6)
    assert tiny.SIZE  # the tiny bundles are of another size than those that are trained


def test_the_command_prints_and_writes_the_table(trained: Any, image_folder: Path, tmp_path: Path) -> None:
    classifier, obfuscator = (str(bundle.path) for bundle in trained)
    given = [
        "evaluate",
        "--transfer",
        obfuscator,
        "--classifier",
        classifier,
        "--data",
        str(image_folder),
        "-o",
        str(tmp_path / "t.json"),
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "small-o" in done.stdout and "not audited" in done.stdout
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["schema"] == "sfumato.transfer/2" and written["test_images"] == 8
    assert isinstance(Bundle.load(trained[0].path), Bundle)


RESULTS = Path(__file__).parents[3] / "results"
PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "other-classifiers.md").read_text(encoding="utf-8")


def row_of(row: TransferObfuscator) -> str:
    """A row of the page's table: in bold what was not seen in training."""
    cells = [
        f"{100 * value:.1f}" if known else f"**{100 * value:.1f}**"
        for value, known in zip(row.accuracy, row.trained_for, strict=True)
    ]
    leak = "not audited" if row.leakage is None else f"{row.leakage.excess_leakage:.2f} ({row.leakage.budget})"
    return f"| {row.name} | " + " | ".join([*cells, leak]) + " |"


def test_the_pages_table_is_the_results_file_which_an_earlier_version_wrote() -> None:
    raw = json.loads((RESULTS / "transfer.json").read_text(encoding="utf-8"))
    assert raw["schema"] == "sfumato.transfer/1"
    found = Transfer.from_json(raw)
    assert found.test_images == 10_000
    for row in found.obfuscators:
        assert row_of(row) in PAGE, row_of(row)
    plain = " | ".join(f"{100 * entry.accuracy_plain:.1f}" for entry in found.classifiers)
    assert f"| plain images | {plain} |" in PAGE, plain
