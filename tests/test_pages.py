"""Tables of the pages against the results files that they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETS = {
    "Imagenette, 128 pixels": ("imagenette128-sketch", "resnet18-imagenet"),
    "Fashion-MNIST, 32 pixels": ("fashion-sketch", "resnet20"),
}


def read(name: str) -> Any:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def test_the_readme_has_the_figures_of_the_shipped_obfuscators() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    sketch, papers = (f"cifar10-resnet20-{kind}" for kind in ("sketch", "obfuscator"))
    plain, ours, theirs = (
        f"{100 * read(f'{name}.json')['figures'][f'accuracy_{what}']:.2f} %"
        for name, what in ((sketch, "plain"), (sketch, "obfuscated"), (papers, "obfuscated"))
    )
    leaks = [f"{read(f'audits/{name}.json')['best']['excess_leakage']:.2f}" for name in (sketch, papers)]
    assert f"({plain} on plain images)" in page
    assert f"| accuracy on the payloads | **{ours}** | {theirs} |" in page
    assert f"the image) | {leaks[0]} | {leaks[1]} |" in page


@pytest.mark.parametrize("name", SETS)
def test_a_row_for_each_data_set(name: str) -> None:
    files, net = SETS[name]
    figures, audit = read(f"{files}.json")["figures"], read(f"photos/{files}.json")
    assert read(f"{files}.json")["obfuscator"]["files"]["obfuscator.onnx"] == audit["target"]["fingerprint"]
    shares = [figures[f"accuracy_{what}"] for what in ("plain", "obfuscated", "device", "gated")]
    cells = [f"{100 * share:.1f}" for share in shares] + [f"{100 * figures['offload_rate']:.1f}"]
    cells += [f"{audit['best']['excess_leakage']:.2f}", audit["best"]["attacker"], audit["budget"]["name"]]
    row = f"| {name} | {net} | " + " | ".join(cells) + " |"
    assert row in (ROOT / "docs" / "how-to" / "large-images.md").read_text(encoding="utf-8"), row


@pytest.mark.parametrize("side", [128, 224])
def test_costs_of_large_images(side: int) -> None:
    found = read(f"cost-{side}.json")
    cloud = next(row for row in found["classifiers"] if row["classifier"] == "resnet18-imagenet")
    millions = [f"{counts['macs'] / 1e6:,.0f}" for counts in (cloud, found["obfuscator"], found["sketch"])]
    row = f"| {side} | " + " | ".join(millions) + f" | {100 * cloud['overhead_macs_sketch']:.1f} % |"
    assert row in (ROOT / "docs" / "how-to" / "large-images.md").read_text(encoding="utf-8"), row


def black_box_row(file: Path) -> str:
    """A row of the black box's table."""
    found = json.loads(file.read_text(encoding="utf-8"))
    audit = json.loads((file.parent / "audits" / file.name).read_text(encoding="utf-8"))
    assert audit["target"]["fingerprint"] == found["obfuscator"]["files"]["obfuscator.onnx"]
    box, measured = found["obfuscator"]["training"]["black_box"], found["figures"]
    shares = box["figures"]["surrogate_agreement"], measured["accuracy_device"], measured["accuracy_obfuscated"]
    cells = [
        found["obfuscator"]["recipe"].get("drawing", "learned"),
        box["answers"],
        f"{box['figures']['queries']:,}",
        *(f"{100 * share:.1f}" for share in shares),
        f"{audit['best']['excess_leakage']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def test_answers_for_queries() -> None:
    page = (ROOT / "docs" / "how-to" / "black-box.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "results" / "black-box").glob("*.json"))
    assert files
    for file in files:
        assert black_box_row(file) in page, black_box_row(file)


def test_what_imagenet_would_cost() -> None:
    found = read("imagenet-estimate.json")
    page = (ROOT / "docs" / "how-to" / "large-images.md").read_text(encoding="utf-8")
    whole = found["extrapolated"]
    for said in (
        f"a matter of {whole['hours']:.0f} hours",
        f"{whole['epochs']} epochs of {whole['steps_per_epoch']:,} steps of {found['step_s']:.2f} s",
        f"{found['images_per_s']:.0f} images a second",
        f"{found['peak_memory_mb']['process'] / 1000:.1f} GB of memory",
        f"extrapolated from {found['steps_timed']} steps",
    ):
        assert said in page, said
