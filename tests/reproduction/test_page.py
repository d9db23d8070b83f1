"""The page comes from results files and the paper's constants, and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reproduction import constants
from reproduction.__main__ import app
from reproduction.files import read_results, write_results
from reproduction.markdown import trained
from reproduction.page import render, write_page
from reproduction.plan import SIZES
from reproduction.schema import (
    TABLES,
    Begun,
    Epochs,
    Lambdas,
    Optimum,
    Origin,
    Table1,
    Table2,
    Table3,
    Table5,
)
from sfumato.errors import ResultsError, SfumatoError

ROOT = Path(__file__).resolve().parents[2]
DECIMAL = re.compile(r"\d[\d,]*\.\d+")


def origin(**facts):
    known = {"epochs": 9, "seed": 0, "batch_size": 64, "privacy_weight": 1.0, "train_images": 50000, "seconds": 3.25}
    return {**known, "device": "a machine", "commit": "abc", **facts}


def audit(mse=0.0464):
    return {"attacker": "residual decoder", "threat": "cloud", "seed": 0, "mse": mse, "psnr_db": 13.33, "ssim": 0.203,
            "excess_leakage": 0.19, "test_images": 10000, "images_seen": 3840, "class_mean_mse": 0.0574,
            "budget": "standard", "finding": "leaks", "commit": "abc"}  # fmt: skip


def pair(**facts):
    attackers = [{"attacker": "least squares", "mse": 0.0488, "images_seen": 12000},
                 {"attacker": "residual decoder", "mse": 0.0471, "images_seen": 3000}]  # fmt: skip
    known = {
        "accuracy_obfuscated": 0.7261,
        "accuracy_plain": 0.9138,
        "joint_mse": 0.0503,
        "class_mean_mse": 0.0571,
        "test_images": 2000,
    }
    return {**known, "attackers": attackers, "adaptive_mse": 0.0471, "adaptive_attacker": "residual decoder", **facts}


def filled(folder: Path) -> Path:
    """Results of both sizes, with figures made up for this test."""
    from reproduction.tables import table_4

    results = folder / "results" / "reproduction"
    for size, plan in SIZES.items():
        papers = [item.paper for item in plan.classifiers]
        names = [item.name for item in plan.classifiers]
        both = {"classifier": origin(epochs=30), "obfuscator": origin()}
        rows = [
            {"classifier": name, "paper": paper, "accuracy_plain": 0.9138, "accuracy_obfuscated": 0.7261,
             "test_images": 10000, "params": 272474, "macs": 40551424, "overhead_params": 1.191,
             "overhead_macs": 0.5252, "overhead_macs_paper_order": 0.6525, "trained": both, "audit": audit()}
            for name, paper in zip(names, papers, strict=True)
        ]  # fmt: skip
        local = {"accuracy": 0.8941, "test_images": 10000, "trained": origin(epochs=12), "params": 1, "macs": 1}
        write_results(results, size, Table1(rows=rows, on_device=local))
        shown = {"file": f"{size}.png", "obfuscator": "o", "first": 0, "count": 10, "adaptive": audit(),
                 "joint": {"mse": 0.0503, "psnr_db": 13.01, "ssim": 0.172, "test_images": 10000}}  # fmt: skip
        write_results(results, size, Table2(panels=[shown]))
        write_results(results, size, Table5(panels=[shown, shown]))
        seen = {"classifiers": [origin()] * len(names), "obfuscators": [origin()] * len(names)}
        matrix = [[0.3 + 0.061 * r + 0.013 * c for c in range(len(names))] for r in range(len(names))]
        facts = {"names": names, "paper": papers, "accuracy": matrix, "test_images": 10000, "trained": seen}
        write_results(results, size, Table3(**facts))
        write_results(results, size, table_4())
        still = {"mean_colour": 0.83, "layout": 0.41}
        at = [{"obfuscator": n, "paper": None, "accuracy_obfuscated": 0.7261, "joint_mse": 0.0503, "explained": still,
               "test_images": 10000, "audit": audit(), "trained": origin()} for n in names]  # fmt: skip
        at[-1]["audit"] = audit(mse=0.0509)
        ends = {
            "plain_image": {"mean_colour": 0.99, "layout": 0.98},
            "class_mean": {"mean_colour": 0.11, "layout": 0.07},
        }
        write_results(results, size, Optimum(rows=at, explained_test_images=2000, references=ends))
        runs = [
            {"obfuscator": n, "paper": None, "trained": origin(), "epochs": [{"epoch": 1, **pair()}]} for n in names
        ]
        write_results(results, size, Epochs(runs=runs, decoder_images=3000))
        swept = [{"run": f"lambda-{x}", "trained": origin(privacy_weight=x), **pair()} for x in (0.0, 0.1, 10.0)]
        write_results(results, size, Lambdas(rows=swept, classifier=names[0], decoder_images=3000))
    step = {"what": "a step", "speedup": 2.74, "median_ms": {"plain_two_pass": 2289.6, "ours": 836.7}, "threads": 2,
            "images_per_s": {"plain_two_pass": 55.9, "ours": 153.0},
            "measured": {"machine": {"cpu": "one"}}}  # fmt: skip
    (results.parent / "training-step.json").write_text(json.dumps(step))
    return results


def moved(value):
    """The same JSON with every number that has a decimal point changed."""
    if isinstance(value, dict):
        return {key: moved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item) for item in value]
    return value * 1.17 + 0.0213 if isinstance(value, float) else value


def move_constants(monkeypatch):
    rows = {n: constants.Row(*(moved(v) for v in vars(r).values())) for n, r in constants.TABLE_1.items()}
    monkeypatch.setattr(constants, "TABLE_1", rows)
    monkeypatch.setattr(constants, "TABLE_3", {n: tuple(map(moved, row)) for n, row in constants.TABLE_3.items()})
    monkeypatch.setattr(constants, "MACS", constants.MACS * 1.3)


def test_the_page_in_the_tree_is_what_its_results_give():
    page = ROOT / "docs" / "reproduction.md"
    assert page.read_text(encoding="utf-8") == render(ROOT / "results" / "reproduction", page.stem)


def test_every_decimal_number_moves_with_results_and_constants(tmp_path, monkeypatch):
    results = filled(tmp_path)
    before = render(results, "reproduction")
    assert "missing: `" not in before
    for path in results.parent.rglob("*.json"):
        path.write_text(json.dumps(moved(json.loads(path.read_text()))))
    move_constants(monkeypatch)
    after = render(results, "reproduction")
    numbers, others = DECIMAL.findall(before), DECIMAL.findall(after)
    assert len(numbers) == len(others) > 200
    # A difference may stay what it was after rounding; what is written by hand stays everywhere.
    same = [(one, other) for one, other in zip(numbers, others, strict=True) if one == other]
    assert len(same) <= len(numbers) // 50, same


def test_a_figure_in_the_results_is_the_figure_on_the_page(tmp_path):
    results = filled(tmp_path)
    path = results / "cpu-table1.json"
    found = json.loads(path.read_text())
    found["rows"][0]["accuracy_obfuscated"] = 0.12345
    found["rows"][0]["audit"]["excess_leakage"] = 0.777
    path.write_text(json.dumps(found))
    line = next(line for line in render(results, "x").splitlines() if line.startswith("| resnet20-1 | 91.4 % "))
    assert "| 12.3 % | -79.0 |" in line and "| 0.78 (residual decoder, cloud; budget standard, 10,000 images) |" in line


def test_the_papers_figures_stand_beside_ours(tmp_path):
    text = render(filled(tmp_path), "x")
    assert "| VGG19 | 93.4 % / 91.4 % / -2.0 | 89.3 % / 72.6 % / -16.7 | 6.7 % / 65.2 % / 52.5 % |" in text
    assert "For 2 of 3 obfuscators of size `cpu`" in text and "For 4 of 5 obfuscators of size `paper`" in text
    assert "| VGG19 | 25.8 % /" in text
    assert "| difference |  |  |  |  | +0 | +1.7 % |  |" in text


def test_nothing_there_gives_a_page_of_commands(tmp_path):
    text = render(tmp_path / "nowhere", "x")
    for size in SIZES:
        for name in ("table1", "table2", "table3", "table5", "optimum"):
            assert f"missing: `python -m reproduction {name} --size {size}`" in text
    assert f"Missing: {', '.join(kind.table for kind in TABLES)}." in text
    assert "not encryption" in text and "adaptive attackers" in text


@pytest.mark.parametrize("name", [kind.table for kind in TABLES])
@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "other"}', None])
def test_a_malformed_file_is_named_in_one_line(tmp_path, name, damage):
    results = tmp_path / "results"
    results.mkdir()
    head = {"schema": "sfumato.reproduction/2", "size": "cpu", "table": name}
    damage = damage or json.dumps({**head, "rows": "nonsense", "runs": "nonsense", "panels": "nonsense"})
    (results / f"cpu-{name}.json").write_text(damage)
    with pytest.raises(ResultsError, match=f"cpu-{name}.json") as raised:
        write_page(results, tmp_path / "page.md")
    assert "\n" not in str(raised.value) and not (tmp_path / "page.md").exists()


OLD_NAMES = {
    "on_device": "local",
    "panels": "pictures",
    "adaptive": "later",
    "adaptive_mse": "later_mse",
    "adaptive_attacker": "later_attacker",
    "privacy_weight": "lambda",
    "explained": "remains",
    "explained_test_images": "remains_test_pictures",
    "references": "beside",
    "plain_image": "identity",
    "class_mean": "label",
    "test_images": "test_pictures",
    "train_images": "train_pictures",
    "images_seen": "pictures_seen",
    "decoder_images": "decoder_pictures",
}


def as_version_1(value):
    """The same JSON under the names that version 1 had."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): as_version_1(item) for key, item in value.items()}
    return [as_version_1(item) for item in value] if isinstance(value, list) else value


def test_results_of_version_1_give_the_same_page(tmp_path):
    results = filled(tmp_path)
    before, whole = render(results, "x"), {}
    for size in SIZES:
        whole |= {(size, kind): read_results(results, size, kind) for kind in TABLES}
    for path in results.glob("*.json"):
        path.write_text(json.dumps(as_version_1(json.loads(path.read_text()) | {"schema": "sfumato.reproduction/1"})))
    assert render(results, "x") == before
    assert whole == {(size, kind): read_results(results, size, kind) for size, kind in whole}


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_command_writes_the_page_and_says_so(tmp_path):
    page = tmp_path / "docs" / "reproduction.md"
    done = run("page", "--results", filled(tmp_path), "--page", page, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"written": [str(page)]}
    assert "![" in page.read_text()


@pytest.mark.long
def test_the_command_lists_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # else the command starts the process again
    monkeypatch.chdir(ROOT)
    done = run("table1", "--plan", "--lab", tmp_path / "lab")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "resnet20-1: done"
    untrained = next(line for line in lines if line.startswith("vgg7:"))
    assert re.fullmatch(r"vgg7: missing, about \d+ (seconds|minutes|hours)", untrained)
    assert "audit of resnet20-1-obfuscator: done" in lines and "audit of vgg7-obfuscator: missing" in done.stdout
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("mse", "leakage", "answer"),
    [
        (0.0431, 0.25, "does not hold: the jointly trained deobfuscator underestimates"),
        (0.0571, 0.01, "holds against these attackers"),
        (0.0520, 0.09, "does not hold**, and the jointly trained deobfuscator"),
    ],
)
def test_the_page_begins_with_whether_the_claim_holds(tmp_path, mse, leakage, answer):
    results = filled(tmp_path)
    path = results / "paper-optimum.json"
    found = json.loads(path.read_text())
    reidentified = {"top1": 0.983, "candidates": 100, "chance": 0.01, "queries": 500, "attacker": "x"}
    found["rows"][0] |= {"paper": "ResNet18_1", "joint_mse": 0.0503}
    found["rows"][0]["audit"] |= {"mse": mse, "excess_leakage": leakage, "reidentified": reidentified}
    path.write_text(json.dumps(found))
    text = render(results, "x")
    claim = text[: text.index("## Table 1")].split("## Can an obfuscated image be reconstructed?")[1]
    assert answer in claim and "with ResNet18_1," in claim and "![o: original" in claim
    assert f"at least {leakage:.2f}" in claim
    assert "among 100 of its class in 98.3 % of cases (chance: 1.0 %)" in claim


def test_wrong_usage_is_said(tmp_path):
    assert run("table9").exit_code == 2
    done = run("table1", "--size", "huge")
    assert isinstance(done.exception, SfumatoError) and "known: paper, cpu" in str(done.exception)
    (tmp_path / "file").touch()
    done = run("page", "--results", tmp_path, "--page", tmp_path / "file" / "page.md")
    assert isinstance(done.exception, SfumatoError) and "cannot be written" in str(done.exception)


def test_how_a_network_was_trained_is_said():
    known = {"seed": 0, "batch_size": 256, "train_images": 50_000, "seconds": 5400.0, "device": "a CPU", "commit": None}
    short = Origin(epochs=13, optimizer="muon", small_epochs=8, precision="bfloat16", **known)
    assert trained(short) == (
        "13 epochs of 50,000 images, the first 8 on images of three quarters of their sides, Muon, batch 256, seed 0, "
        "bfloat16, 1.5 hours, a CPU"
    )
    begun = Origin(epochs=8, begun=Begun(epochs=28, seconds=2700.0), **known)
    assert trained(begun).startswith(
        "8 epochs of 50,000 images after 28 of its trunk as a classifier (45 minutes), batch"
    )
    assert trained(Origin(epochs=9, **known)) == "9 epochs of 50,000 images, batch 256, seed 0, 1.5 hours, a CPU"


def test_the_page_says_first_what_held(tmp_path):
    results = filled(tmp_path)
    said = render(results, "x").split("## What held of the paper")[1].split("\n## ")[0]
    rows = [line for line in said.splitlines() if "| " in line][2:]
    assert [row.split(" | ")[2].strip(" |") for row in rows] == [
        "not reached in so few epochs",
        "does not hold",
        "does not hold",
        "does not hold",
        "does not hold",  # the last column has the highest figure of each row
        "not asked in the paper",
    ]
    path = results / "paper-table1.json"
    found = json.loads(path.read_text())
    first = found["rows"][0]
    first |= {"accuracy_plain": 0.94, "accuracy_obfuscated": 0.8899, "overhead_macs_paper_order": 0.0482}
    first["overhead_params"] = 0.0291
    path.write_text(json.dumps(found))
    path = results / "paper-table3.json"
    found = json.loads(path.read_text())
    found["accuracy"] = [[0.9 if row == column else 0.3 for column in range(5)] for row in range(5)]
    path.write_text(json.dumps(found))
    text = render(results, "x")
    assert "Size `paper`: 90.0 % to 90.0 % on its own, 30.0 % to 30.0 % on others | holds |" in text
    assert "94.0 % becomes 89.0 %, -5.0 points" in text and "instead of 100 | holds |" in text
    assert "| 4.8 % and 2.9 %; " in text
