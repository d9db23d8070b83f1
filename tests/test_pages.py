"""Tables of the pages against the results files that they are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from scripts import write_results

ROOT = Path(__file__).parents[1]
SETS = {
    "Imagenette, 128 pixels": ("imagenette128-sketch", "resnet18-imagenet"),
    "Fashion-MNIST, 32 pixels": ("fashion-sketch", "resnet20"),
}


def read(name: str) -> Any:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def test_the_readme_has_the_figures_of_its_obfuscators() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shipped, papers = read("cifar10-resnet20-sketch.json")["figures"], "reproduction/networks/resnet18-1-obfuscator"
    large, theirs = (read(f"{name}/bundle.json")["figures"] for name in ("resnet18-sketch/bundle", papers))
    files = ("resnet18-sketch/audit.json", "audits/cifar10-resnet20-sketch.json", f"{papers}/audit.json")
    audits = [read(name) for name in files]
    leaks = [f"{audit['best']['excess_leakage']:.2f}" for audit in audits]
    accuracies = [f"{100 * figures['accuracy_obfuscated']:.2f} %" for figures in (large, shipped, theirs)]
    bits = f"{audits[1]['certificate']['rate_bits']:.1f}"
    alone = " | ".join(f"{100 * figures['accuracy_device']:.2f} %" for figures in (large, shipped))
    local = f"{100 * audits[1]['utility']['accuracy_local']:.1f} % (a classifier of the same cost)"
    found = [
        max(row["top1"] for row in audit["identification"] if (row["measure"], row["candidates"]) == ("retrieval", 100))
        for audit in audits
    ]
    times = read("device-latency.json")["share_of_resnet18"]
    joint, best, mean = theirs["joint_deobfuscator_mse"], audits[2]["best"]["mse"], audits[2]["class_mean_mse"]
    for said in (
        f"ResNet20 ({100 * shipped['accuracy_plain']:.2f} %)",
        f"error of {joint:.4f}, the best attacker trained afterwards {best:.4f}, and the class mean {mean:.4f}.",
        f"(trained here: {100 * theirs['accuracy_plain']:.2f} % on plain images",
        "| accuracy on the payloads | **{}** | {} | {} |".format(*accuracies),
        "the image) | {} | {} | {} |".format(*leaks),
        "(chance 1 %) | {} | {} | {} |".format(*(f"{100 * top1:.1f} %" for top1 in found)),
        "one thread | {resnet18_sketch:.1%} | {sketch:.1%} | {obfuscator:.1%} |".format(**times).replace("%", " %"),
        f"| bits about an image, at most | {bits} | {bits} | no bound |",
        f"| the device alone | {alone} | {local} |",
    ):
        assert said in page, said


def test_the_results_have_the_figures_of_the_shipped_obfuscators() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    sketch, papers = (f"cifar10-resnet20-{kind}" for kind in ("sketch", "obfuscator"))
    plain, ours, theirs = (
        f"{100 * read(f'{name}.json')['figures'][f'accuracy_{what}']:.2f} %"
        for name, what in ((sketch, "plain"), (sketch, "obfuscated"), (papers, "obfuscated"))
    )
    found = [read(f"audits/{name}.json") for name in (sketch, papers)]
    leaks = " | ".join(f"{audit['best']['excess_leakage']:.2f}" for audit in found)
    assert f"({plain} on plain images)" in page
    assert f"| accuracy on the obfuscated images | **{ours}** | {theirs} |" in page
    assert f"| excess leakage, at least | {leaks} |" in page
    assert f"| bits about an image, at most | {found[0]['certificate']['rate_bits']:.1f} | no bound |" in page


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


def test_the_first_table_of_alternatives_has_the_measured_figures() -> None:
    page = (ROOT / "docs" / "alternatives.md").read_text(encoding="utf-8")
    rows = {row["name"]: row for row in read("alternatives.json")["rows"]}
    trips = {name: row["seconds"] / rows["plain"]["seconds"] for name, row in rows.items()}
    mpc = [trips[name] for name in ("crypten", "crypten-public", "spu")]
    sent = [rows[name]["sent_bytes"] / 1e6 for name in ("crypten-public", "crypten")]
    blur, pixelate = (read(f"audits/{name}.json") for name in ("blur", "pixelate"))
    accuracies = [f"{100 * audit['utility']['accuracy_obfuscated']:.1f} %" for audit in (blur, pixelate)]
    leaks = [f"{audit['best']['excess_leakage']:.2f}" for audit in (blur, pixelate)]
    for said in (
        f"{trips['resnet18']:.2f} of a round trip that offloads the same ResNet18, {trips['resnet-local']:.2f} with",
        f"| {trips['sketch']:.2f} of a round trip; a training run",
        f"| {trips['paper']:.2f} of a round trip; ",
        f"{min(mpc):.0f} to {max(mpc):.0f} round trips for ResNet18; {sent[0]:.0f} to {sent[1]:.0f} MB each way",
        f"{trips['tenseal']:.0f} round trips for one convolution",
        f"{accuracies[0]} and {accuracies[1]} accuracy instead of",
        f"excess leakage of at least {leaks[0]} and {leaks[1]} |",
    ):
        assert said in page, said


def test_the_sections_of_alternatives_have_the_audits_figures() -> None:
    page = (ROOT / "docs" / "alternatives.md").read_text(encoding="utf-8")
    for name in ("cifar10-resnet20-sketch", "cifar10-resnet20-obfuscator", "nopeek", "noise"):
        audit = read(f"audits/{name}.json")
        section = next(part for part in page.split("\n## ") if f"(../results/audits/{name}.json)" in part)
        assert f"{audit['best']['excess_leakage']:.2f}" in section, name
        accuracy = 100 * audit["utility"]["accuracy_obfuscated"]
        assert f"{accuracy:.2f} %" in section or f"{accuracy:.1f} %" in section, name


def test_the_bound_of_differential_privacy_is_the_best_of_all_mechanisms() -> None:
    """The table is of the formula, and a linear programme over all mechanisms finds no better one."""
    page = (ROOT / "docs" / "alternatives.md").read_text(encoding="utf-8")
    head, _, *rows = page.split("<!-- bound -->\n")[1].split("\n<!-- end of bound -->")[0].splitlines()
    epsilons = [float(cell.split("=")[1]) for cell in head.split("|")[2:-1]]
    for row in rows:
        classes, *shares = (cell.strip() for cell in row.split("|")[1:-1])
        k = int(classes.replace(",", ""))
        assert shares == [f"{100 * math.exp(e) / (math.exp(e) + k - 1):.1f} %" for e in epsilons]
    assert 100 * best_private_accuracy(10, epsilons[0]) == pytest.approx(23.2, abs=0.05)


def best_private_accuracy(classes: int, epsilon: float) -> float:
    """Return the highest mean of P(y | class y) over all channels that are private at `epsilon`."""
    chances = np.arange(classes**2).reshape(classes, classes)  # index of P(column | row)
    pairs = [(y, a, b) for y in range(classes) for a in range(classes) for b in range(classes) if a != b]
    ratios, sums = np.zeros((len(pairs), classes**2)), np.zeros((classes, classes**2))
    for at, (y, a, b) in enumerate(pairs):
        ratios[at, chances[a, y]], ratios[at, chances[b, y]] = 1, -math.exp(epsilon)
    for row in range(classes):
        sums[row, chances[row]] = 1
    goal = -np.eye(classes).ravel() / classes
    return float(-linprog(goal, ratios, np.zeros(len(pairs)), sums, np.ones(classes), bounds=(0, 1)).fun)


def test_the_page_for_boards_has_the_measured_figures() -> None:
    page = (ROOT / "docs" / "how-to" / "raspberry-pi.md").read_text(encoding="utf-8")
    boards = {name: found["pythons"] for name, found in read("device-wheels.json")["platforms"].items()}
    (older, newer), install = boards["Linux on 64-bit ARM"].values(), read("device-install.json")
    sizes = [f"{found['device']['download_mb']} and {found['device']['unpacked_mb']} MB" for found in (older, newer)]
    latency = read("device-latency.json")["median_ms"]
    for said in (
        f"{sizes[0]} (Python 3.11), {sizes[1]} (3.13)",
        f"{install['installed_mb']:.0f} MB; {install['import_sfumato_device_s']:.2f} s",
        f"one thread | {latency['sketch']:.2f} ms",
        f"| {latency['obfuscator']:.2f} ms; {latency['classify']:.2f} ms",
    ):
        assert said in page, said
    assert all("missing" not in found for python in (older, newer) for found in python.values())
    assert all("numpy>=1.26" in found["device"]["missing"] for found in boards["Linux on 32-bit ARM"].values())


def test_other_tools_has_the_measured_ratio_to_triton() -> None:
    fast, page = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("how-fast.md", "other-tools.md"))
    (row,) = (line for line in fast.splitlines() if line.startswith("| requests/s of one process, relative to Triton"))
    ratio = row.split("|")[3].strip().removesuffix(" x")
    assert f"served {ratio} times as many requests/s as Triton" in page


def test_how_well_unfamiliar_images_are_flagged() -> None:
    page = " ".join((ROOT / "docs" / "how-to" / "classify.md").read_text(encoding="utf-8").split())
    found = read("out-of-distribution.json")
    for row in found["scores"]:
        if row["score"] == "energy":
            kinds = [row["kinds"][kind] for kind in ("photographs", "pages of text", "noise", "plain colours")]
            cells = [f"{100 * kind['caught']:.0f} % ({kind['auroc']:.2f})" for kind in kinds]
            assert f"| {row['logits']} | {' | '.join(cells)} |" in page, row["logits"]
    shipped, counts = found["shipped"], found["unfamiliar_images"]
    sure = [f"{100 * shipped[kind]['flagged_of_confident']:.0f} %" for kind in counts]
    correct = [f"{100 * shipped['test'][f'accuracy_{which}']:.0f} %" for which in ("flagged", "others")]
    for said in (
        f"with {found['familiar_images']:,} test images",
        f"it flags {sure[0]} on photographs, {sure[1]} on pages of text, {sure[2]} on noise and {sure[3]} on plain",
        f"{correct[0]} are correctly classified, of the others {correct[1]}",
        f"{counts['photographs']} photographs, {counts['noise']} images of each other kind",
    ):
        assert said in page, said


@pytest.mark.parametrize("name", sorted(write_results.SECTIONS))
def test_the_tables_of_results_are_those_of_the_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    begin, end = write_results.markers(name)
    _, _, rest = write_results.PAGE.read_text(encoding="utf-8").partition(f"{begin}\n")
    shown, found, _ = rest.partition(f"\n{end}")
    assert found and shown == write_results.SECTIONS[name][1](), "run `make frontier`: results/ has changed"
