"""The page's tables 1 to 5, each from its results file, or with the command that makes it. Needs no torch."""

from __future__ import annotations

from reproduction import constants
from reproduction.files import TrainingStep
from reproduction.markdown import (
    NONE,
    compared,
    count,
    error,
    leakage,
    measured,
    missing,
    paragraphs,
    percent,
    points,
    ratio,
    table,
    trained,
)
from reproduction.plan import CPU, PAPER
from reproduction.schema import Panel, Table1, Table1Row, Table2, Table3, Table4, Table5

_COMPARED = "paper / ours / difference"
_BASELINE = "on-device baseline (same budget)"
_LEAKAGE = "excess leakage, at least (attacker)"
_TRAINED = "training: classifier; obfuscator"


def table_1_paper(results: Table1 | None) -> str:
    """Table 1 at the paper's size."""
    headers = (
        "network",
        f"plain accuracy: {_COMPARED}",
        f"obfuscated accuracy: {_COMPARED}",
        "MAC overhead: paper / ours, paper's order / ours",
        "parameter overhead: paper / ours",
        _BASELINE,
        _LEAKAGE,
        _TRAINED,
    )
    found = {row.paper: row for row in results.rows} if results else {}
    baseline = results.on_device.accuracy if results and results.on_device else None
    rows = []
    for item in PAPER.classifiers:
        name = str(item.paper)
        theirs, ours = constants.TABLE_1.get(name), found.get(name)
        plain, obfuscated = (theirs.plain, theirs.obfuscated) if theirs else (None, _diagonal(name))
        macs, params = (theirs.macs, theirs.params) if theirs else (None, None)
        if ours is None:
            cells = [compared(plain, None), compared(obfuscated, None), percent(macs), percent(params)]
            rows.append([name, *cells, NONE, NONE, missing("table1", "paper")])
            continue
        rows.append(
            [
                name,
                compared(plain, ours.accuracy_plain),
                compared(obfuscated, ours.accuracy_obfuscated),
                f"{percent(macs)} / {percent(ours.overhead_macs_paper_order)} / {percent(ours.overhead_macs)}",
                f"{percent(params)} / {percent(ours.overhead_params)}",
                percent(baseline),
                leakage(ours.audit),
                _both_trained(ours),
            ]
        )
    note = (
        "The paper prints one ResNet18 in this table; its figures match ResNet18_1 of its table 3. The obfuscated "
        "accuracy of ResNet18_2 is taken from table 3."
    )
    return paragraphs(note, table(headers, rows), measured(results) if results else None)


def _diagonal(name: str) -> float:
    return constants.TABLE_3[name][constants.NETS.index(name)]


def _both_trained(row: Table1Row) -> str:
    return f"{trained(row.trained.classifier)}; {trained(row.trained.obfuscator)}"


def table_1_cpu(results: Table1 | None) -> str:
    """Table 1 at the size of a CPU."""
    headers = (
        "network (CPU size)",
        "plain accuracy",
        "obfuscated accuracy",
        "difference, points",
        "MAC overhead: paper's order / ours",
        "parameter overhead",
        _BASELINE,
        _LEAKAGE,
        "test images",
        _TRAINED,
    )
    if results is None:
        empty = [NONE] * (len(headers) - 2)
        return table(headers, [[item.name, *empty, missing("table1", "cpu")] for item in CPU.classifiers])
    rows = [
        [
            row.classifier,
            percent(row.accuracy_plain),
            percent(row.accuracy_obfuscated),
            points(row.accuracy_obfuscated - row.accuracy_plain),
            f"{percent(row.overhead_macs_paper_order)} / {percent(row.overhead_macs)}",
            percent(row.overhead_params),
            percent(results.on_device.accuracy if results.on_device else None),
            leakage(row.audit),
            count(row.test_images),
            _both_trained(row),
        ]
        for row in results.rows
    ]
    losses = [row.obfuscated - row.plain for row in constants.TABLE_1.values()]
    note = f"In the paper, obfuscation changes the accuracy by {points(max(losses))} to {points(min(losses))} points."
    if results.on_device:
        note += f" Training of the on-device baseline: {trained(results.on_device.trained)}."
    return paragraphs(table(headers, rows), note, measured(results))


def panels(results: Table2 | Table5 | None, target: str, size: str, folder: str) -> str:
    """Tables 2 and 5: the images of a size."""
    if results is None:
        return missing(target, size)
    parts = []
    for row in results.panels:
        figures = [f"{error(row.joint.mse)} for the jointly trained deobfuscator"]
        if row.adaptive is not None:
            figures.append(
                f"{error(row.adaptive.mse)} for the best adaptive attacker "
                f"({row.adaptive.attacker}, {row.adaptive.threat})"
            )
            figures.append(f"{error(row.adaptive.class_mean_mse)} for the class mean")
        parts += [
            panel(row, folder),
            f"{row.obfuscator}, test images {row.first} to {row.first + row.count - 1}, not selected. MSE over "
            f"{count(row.joint.test_images)} test images: {', '.join(figures)}.",
        ]
    return paragraphs(*parts, measured(results))


def panel(row: Panel, folder: str) -> str:
    """A panel as an image of the page."""
    return f"![{row.obfuscator}: original, obfuscated, reconstructed twice]({folder}/{row.file})"


def table_3_paper(results: Table3 | None) -> str:
    """Table 3 at the paper's size: the paper's accuracies compared with ours."""
    found: dict[tuple[str | None, str | None], float] = {}
    if results is not None:
        for name, accuracies in zip(results.paper, results.accuracy, strict=True):
            found |= {(name, other): value for other, value in zip(results.paper, accuracies, strict=True)}
    headers = ("trained for", *(f"tested on {name}" for name in constants.NETS), "")
    rows = []
    for name in constants.NETS:
        theirs = zip(constants.NETS, constants.TABLE_3[name], strict=True)
        cells = [compared(value, found.get((name, other))) for other, value in theirs]
        rows.append([name, *cells, "" if results else missing("table3", "paper")])
    note = f"Each cell: accuracy, {_COMPARED} in points."
    return paragraphs(note, table(headers, rows), _transferred(results) if results else None)


def table_3_cpu(results: Table3 | None) -> str:
    """Table 3 at the size of a CPU."""
    names = tuple(item.name for item in CPU.classifiers) if results is None else results.names
    headers = ("trained for (CPU size)", *(f"tested on {name}" for name in names))
    if results is None:
        empty = [NONE] * (len(names) - 1)
        return table(headers, [[name, missing("table3", "cpu"), *empty] for name in names])
    rows = [[name, *map(percent, row)] for name, row in zip(names, results.accuracy, strict=True)]
    return paragraphs(table(headers, rows), _transferred(results))


def _transferred(results: Table3) -> str:
    origins = zip(results.names, results.trained.classifiers, results.trained.obfuscators, strict=True)
    said = [f"{name}: {trained(one)}; its obfuscator: {trained(other)}" for name, one, other in origins]
    return f"Accuracy on {count(results.test_images)} test images. {'. '.join(said)}. {measured(results)}"


def table_4(results: Table4 | None) -> str:
    """Table 4: the architecture as it runs, compared with the paper's."""
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
            cells = [NONE, module, str(channels), str(stride), missing("table4", "cpu"), NONE, NONE]
        else:
            ours = results.rows[number]
            cells = [" x ".join(map(str, ours.input)), ours.module, str(ours.output[0]), str(ours.stride)]
            cells += map(count, (ours.params, ours.macs_paper_order, ours.macs))
        rows.append([size, *cells])
    if results is not None:
        totals = map(count, (results.params, results.macs_paper_order, results.macs))
        rows.append(["total", "", "", "", "", *totals])
        rows.append(
            ["paper", "", "", "", "", count(constants.PARAMS), f"{constants.MACS / 1e7:.1f} x 10^7", "not counted"]
        )
        relative = results.macs_paper_order / constants.MACS - 1
        rows.append(
            ["difference", "", "", "", "", f"{results.params - constants.PARAMS:+,}", f"{points(relative)} %", ""]
        )
    note = (
        "The sizes printed in the paper are inconsistent: its second row takes 32 x 16 x 16 from a convolution of "
        "stride 1, and 4 x 4 follows 16 x 16 after a single stride of 2. Our sizes are those that match its totals. "
        "The paper upsamples before the last 1x1 convolution of a block, we upsample after it; both compute the same "
        "function."
    )
    return paragraphs(table(headers, rows), note, measured(results) if results else None)


def step(results: TrainingStep | None) -> str:
    """The training step compared with a plain loop."""
    if results is None:
        return "missing: `python benchmarks/training_step.py`"
    times, speeds = results.median_ms, results.images_per_s
    rows = [
        ["plain two-pass loop", f"{times.plain_two_pass:.0f} ms", f"{speeds.plain_two_pass:.0f}"],
        ["`sfumato train`", f"{times.ours:.0f} ms", f"{speeds.ours:.0f}"],
    ]
    return paragraphs(
        table(("", "time per step", "images/s"), rows),
        f"`sfumato train` is {ratio(results.speedup)} times as fast. Measured: {results.what}, {results.threads} "
        f"threads of {results.measured.machine.cpu}, both alternating in one run.",
    )
