"""The page's tables 1 to 5: each from its results file, or saying which command makes that. Needs no torch."""

from __future__ import annotations

from typing import Any

from reproduction import constants
from reproduction.markdown import (
    NONE,
    command,
    compared,
    count,
    error,
    leakage,
    measured,
    percent,
    points,
    ratio,
    table,
    trained,
)
from reproduction.plan import CPU, PAPER

Results = dict[str, Any] | None
_GROUPS = "paper / ours / difference"


def table_1_paper(results: Results) -> str:
    """Table 1 at the paper's size."""
    headers = (
        "net",
        f"plain: {_GROUPS}",
        f"obfuscated: {_GROUPS}",
        "overhead in MACs: paper / ours, its order / ours",
        "overhead in parameters: paper / ours",
        "classifier of the obfuscator's cost, on the device",
        "excess leakage, at least (attacker)",
        "trained: classifier; obfuscator",
    )
    found = {row["paper"]: row for row in results["rows"]} if results else {}
    local = results["local"]["accuracy"] if results and results["local"] else None
    rows = []
    for item in PAPER.classifiers:
        name = str(item.paper)
        theirs, ours = constants.TABLE_1.get(name), found.get(name)
        plain, hidden = (theirs.plain, theirs.obfuscated) if theirs else (None, _diagonal(name))
        macs, params = (theirs.macs, theirs.params) if theirs else (None, None)
        if ours is None:
            cells = [compared(plain, None), compared(hidden, None), percent(macs), percent(params)]
            rows.append([name, *cells, NONE, NONE, command("table1", "paper")])
            continue
        rows.append(
            [
                name,
                compared(plain, ours["accuracy_plain"]),
                compared(hidden, ours["accuracy_obfuscated"]),
                f"{percent(macs)} / {percent(ours['overhead_macs_paper_order'])} / {percent(ours['overhead_macs'])}",
                f"{percent(params)} / {percent(ours['overhead_params'])}",
                percent(local),
                leakage(ours["audit"]),
                f"{trained(ours['trained']['classifier'])}; {trained(ours['trained']['obfuscator'])}",
            ]
        )
    note = (
        "The paper prints one ResNet18; its figures are those of ResNet18_1 here. The obfuscated accuracy of "
        "ResNet18_2 is from its table 3."
    )
    return _joined(note, table(headers, rows), measured(results) if results else None)


def _diagonal(name: str) -> float:
    return constants.TABLE_3[name][constants.NETS.index(name)]


def table_1_cpu(results: Results) -> str:
    """Table 1 at the size of a CPU."""
    headers = (
        "net (CPU size)",
        "plain",
        "obfuscated",
        "lost, points",
        "overhead in MACs: its order / ours",
        "overhead in parameters",
        "classifier of the obfuscator's cost, on the device",
        "excess leakage, at least (attacker)",
        "test images",
        "trained: classifier; obfuscator",
    )
    if results is None:
        empty = [NONE] * (len(headers) - 2)
        rows = [[item.name, *empty, command("table1", "cpu")] for item in CPU.classifiers]
        return table(headers, rows)
    rows = [
        [
            row["classifier"],
            percent(row["accuracy_plain"]),
            percent(row["accuracy_obfuscated"]),
            points(row["accuracy_obfuscated"] - row["accuracy_plain"]),
            f"{percent(row['overhead_macs_paper_order'])} / {percent(row['overhead_macs'])}",
            percent(row["overhead_params"]),
            percent(results["local"]["accuracy"] if results["local"] else None),
            leakage(row["audit"]),
            count(row["test_images"]),
            f"{trained(row['trained']['classifier'])}; {trained(row['trained']['obfuscator'])}",
        ]
        for row in results["rows"]
    ]
    losses = [row.obfuscated - row.plain for row in constants.TABLE_1.values()]
    note = f"In the paper obfuscation costs {points(max(losses))} to {points(min(losses))} points."
    if results["local"]:
        note += f" The classifier on the device: {trained(results['local']['trained'])}."
    return _joined(table(headers, rows), note, measured(results))


def images(results: Results, target: str, size: str, folder: str) -> str:
    """Tables 2 and 5: the panels of a size."""
    if results is None:
        return command(target, size)
    parts = []
    for row in results["images"]:
        joint, later = row["joint"], row["later"]
        says = f"reconstructed by the joint deobfuscator with MSE {error(joint['mse'])}"
        if later is not None:
            says += (
                f", by the best attacker who came afterwards ({later['attacker']}, {later['threat']}) with "
                f"{error(later['mse'])}; the class mean has {error(later['class_mean_mse'])}"
            )
        last = row["first"] + row["count"] - 1
        parts += [
            panel(row, folder),
            f"{row['obfuscator']}, test images {row['first']} to {last}, not chosen: {says} "
            f"(over {count(joint['test_images'])} images).",
        ]
    return _joined(*parts, measured(results))


def panel(row: dict[str, Any], folder: str) -> str:
    """A panel as an image of the page."""
    return f"![{row['obfuscator']}: original, obfuscated, reconstructed twice]({folder}/{row['file']})"


def table_3_paper(results: Results) -> str:
    """Table 3 at the paper's size: the paper's matrix, and ours beside it."""
    found: dict[tuple[str, str], float] = {}
    if results is not None:
        for row, name in enumerate(results["paper"]):
            for column, other in enumerate(results["paper"]):
                found[name, other] = results["accuracy"][row][column]
    headers = ("trained on", *(f"tested on {name}" for name in constants.NETS), "")
    rows = []
    for name in constants.NETS:
        theirs = constants.TABLE_3[name]
        cells = [compared(value, found.get((name, other))) for other, value in zip(constants.NETS, theirs, strict=True)]
        rows.append([name, *cells, "" if results else command("table3", "paper")])
    return _joined(f"Each cell: {_GROUPS} in points.", table(headers, rows), _transferred(results) if results else None)


def table_3_cpu(results: Results) -> str:
    """Table 3 at the size of a CPU."""
    names = [item.name for item in CPU.classifiers] if results is None else results["names"]
    headers = ("trained on (CPU size)", *(f"tested on {name}" for name in names))
    if results is None:
        empty = [NONE] * (len(names) - 1)
        return table(headers, [[name, command("table3", "cpu"), *empty] for name in names])
    rows = [[name, *map(percent, row)] for name, row in zip(names, results["accuracy"], strict=True)]
    return _joined(table(headers, rows), _transferred(results))


def _transferred(results: dict[str, Any]) -> str:
    seen = [
        f"{name}: {trained(classifier)}; its obfuscator: {trained(obfuscator)}"
        for name, classifier, obfuscator in zip(
            results["names"], results["trained"]["classifiers"], results["trained"]["obfuscators"], strict=True
        )
    ]
    return f"Over {count(results['test_images'])} test images. {'. '.join(seen)}. {measured(results)}"


def table_4(results: Results) -> str:
    """Table 4: the architecture as it runs, beside the paper's."""
    headers = (
        "input size: paper",
        "input size: ours",
        "module",
        "output channels",
        "stride",
        "parameters",
        "MACs, paper's order",
        "MACs, ours",
    )
    rows = []
    for number, (size, module, channels, stride) in enumerate(constants.TABLE_4):
        if results is None:
            cells = [NONE, module, str(channels), str(stride), command("table4", "cpu"), NONE, NONE]
        else:
            ours = results["rows"][number]
            cells = [" x ".join(map(str, ours["input"])), ours["module"], str(ours["output"][0]), str(ours["stride"])]
            cells += [count(ours[key]) for key in ("params", "macs_paper_order", "macs")]
        rows.append([size, *cells])
    if results is not None:
        totals = [count(results[key]) for key in ("params", "macs_paper_order", "macs")]
        rows.append(["total", "", "", "", "", *totals])
        difference = results["params"] - constants.PARAMS
        apart = results["macs_paper_order"] / constants.MACS - 1
        rows.append(
            ["paper", "", "", "", "", count(constants.PARAMS), f"{constants.MACS / 1e7:.1f} x 10^7", "not counted"]
        )
        rows.append(["difference", "", "", "", "", f"{difference:+,}", f"{points(apart)} %", ""])
    note = (
        "The sizes that the paper prints are inconsistent: its second row takes 32 x 16 x 16 from a convolution of "
        "stride 1, and 4 x 4 follows 16 x 16 through one stride of 2. Ours are the ones that fit its totals. In the "
        "paper's order the upsampling stands before the last 1x1 convolution of its block, in ours behind it, which "
        "computes the same function."
    )
    return _joined(table(headers, rows), note, measured(results) if results else None)


def step(results: Results) -> str:
    """The training step beside a plain loop."""
    if results is None or "images_per_s" not in results:
        return "missing: `python benchmarks/training_step.py`"
    images, times = results["images_per_s"], results["median_ms"]
    names = (("plain two-pass loop", "plain_two_pass"), ("`sfumato train`", "ours"))
    rows = [[says, f"{times[name]:.0f} ms", f"{images[name]:.0f}"] for says, name in names]
    facts = results["measured"]
    return _joined(
        table(("", "a step", "images a second"), rows),
        f"{ratio(results['speedup'])} times as fast: {results['what']}, {results['threads']} threads of "
        f"{facts['machine']['cpu']}, timed in turn in one run.",
    )


def _joined(*parts: str | None) -> str:
    return "\n\n".join(part for part in parts if part)
