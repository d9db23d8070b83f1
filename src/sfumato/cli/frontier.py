"""`sfumato frontier`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.audit import Bars, BudgetName
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json
from sfumato.cli.train import keep_freed_memory
from sfumato.errors import AuditError, SfumatoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sfumato.lab.report.tradeoff import Row
    from sfumato.lab.sweep.jobs import Engine, Job
    from sfumato.lab.sweep.plan import Sweep


class EngineName(StrEnum):
    """Who makes the points of a sweep."""

    PROCESS = "process"
    RAY = "ray"


@app.command()
def frontier(
    context: typer.Context,
    what: Annotated[Path, typer.Argument(help="Folder with audits' JSON files, or the recipe of an obfuscator.")],
    this: Annotated[
        str | None, typer.Option(help="Of a folder: name of the audit to point out.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Of a folder: the PNG file. Of a recipe: the sweep's folder. [default: runs/RECIPE-frontier]",
        ),
    ] = None,
    dial: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Sweep these values of the recipe; several dials span a grid."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value at all points; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train each point with so many seeds.")] = 1,
    budget: Annotated[BudgetName, typer.Option(help="How hard the audits' attackers try.")] = BudgetName.QUICK,
    images: Annotated[
        int | None, typer.Option(min=10, help="Audit with only so many training and test images each.")
    ] = None,
    local: Annotated[Path | None, typer.Option(help="Bundle of a classifier small enough for the device.")] = None,
    local_recipe: Annotated[Path | None, typer.Option(help="Train that classifier by this recipe instead.")] = None,
    beside: Annotated[Path | None, typer.Option(help="Folder of other audits' JSON files, for the plot.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the points, what is there, and how long the rest takes.")
    ] = False,
    engine: Annotated[
        EngineName, typer.Option(help="One point after the other in this process, or several at once with Ray Tune.")
    ] = EngineName.PROCESS,
    parallel: Annotated[int | None, typer.Option(min=1, help="Ray: points at once, at most.")] = None,
    cpus: Annotated[float | None, typer.Option(min=0.1, help="Ray: cores for each point. [default: 1]")] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="Ray: GPUs for each point. [default: 1 where there are any]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray: a cluster; folders must be shared by its machines.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw accuracy against excess leakage, and say whether offloading is worth it.

    Of a folder of audits, or of a recipe: then every setting of the dials is trained and audited, beside a classifier
    on the device and the plain image. Ctrl-C loses little: the same command goes on.

    Examples: `sfumato frontier results/audits --this cifar10-resnet20-sketch -o docs/frontier.png`,
    `sfumato frontier recipes/cifar10-resnet20-sketch.toml --dial code_bits=4,8,16 --seeds 3
    --local-recipe recipes/cifar10-local.toml --beside results/audits --plan`
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if what.suffix != ".toml":
        _refuse(given - {"what", "this", "out", "as_json"}, f"only of a recipe (a .toml file), and {what} is none")
        _of_folder(what, this, out, as_json=as_json)
        return
    _refuse(given & {"this"}, "only of a folder of audits")
    options = {"parallel": parallel, "cpus": cpus, "gpus": gpus, "address": address}
    if engine is not EngineName.RAY:
        _refuse(given & options.keys(), "only with --engine ray")
    keep_freed_memory()
    with needs_train_extra():
        from sfumato.lab.audit.budget import BUDGETS
        from sfumato.lab.audit.speed import spoken
        from sfumato.lab.sweep.plan import listing, plan_sweep
    sweep = plan_sweep(
        what,
        out or Path("runs") / f"{what.stem}-frontier",
        BUDGETS[budget.value],
        dials=dial or (),
        seeds=seeds,
        overrides=set_ or (),
        images_each=images,
        local=local,
        local_recipe=local_recipe,
        beside=beside,
    )
    if plan:
        entries = listing(sweep)
        if as_json:
            print_json({"plan": [vars(entry) for entry in entries]})
            return
        for entry in entries:
            typer.echo(entry.line)
        left = sum(entry.seconds or 0 for entry in entries)
        typer.echo(f"in all about {spoken(left)} on this machine, one after the other" if left else "nothing is left")
        return
    _of_sweep(sweep, engine, options, as_json=as_json)


def _refuse(given: set[str], why: str) -> None:
    if given:
        names = ", ".join("--" + name.strip("_").replace("_", "-") for name in sorted(given))
        raise SfumatoError(f"{names}: {why}")


def _of_sweep(sweep: Sweep, engine: EngineName, options: dict[str, Any], *, as_json: bool) -> None:
    from functools import partial

    from sfumato.lab.report.tradeoff import rows_of
    from sfumato.lab.sweep.engines import in_turn, on_ray
    from sfumato.lab.sweep.jobs import make
    from sfumato.lab.sweep.run import run_sweep

    runs: Engine = in_turn
    make_with: Callable[[Job], None] = partial(make, bars=lambda: Bars(quiet=as_json))
    if engine is EngineName.RAY:
        options = {name: value for name, value in options.items() if value is not None}
        runs, make_with = on_ray(sweep.folder / "ray", **options), make
    found = run_sweep(sweep, engine=runs, make=make_with, say=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(found.content)
    else:
        _show([*found.rows, *rows_of(found.beside)], found.beside, found.content["verdict"]["sentences"])
        typer.echo(f"\nwritten: {found.content['plot']}\nwritten: {found.file}")
    if failed := found.content["failed"]:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise SfumatoError(f"{len(failed)} of {len(sweep.jobs)} points could not be made: {reasons}")


def _of_folder(folder: Path, this: str | None, out: Path | None, *, as_json: bool) -> None:
    with needs_train_extra():
        from sfumato.lab.report.frontier import save_frontier_png
        from sfumato.lab.report.points import collect
        from sfumato.lab.report.tradeoff import rows_of, verdict

    points = collect(folder)
    if this is not None:
        if this not in [point["name"] for point in points]:
            raise AuditError(f"no audit of {this!r} in {folder}; there are {', '.join(p['name'] for p in points)}")
        points = [{**point, "role": "this"} if point["name"] == this else point for point in points]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_frontier_png(points, out)
    rows = rows_of(points)
    worth, sentences = verdict(rows) if rows else ("unknown", ["No audit here has accuracy and leakage both."])
    if as_json:
        answer = {"worth": worth, "sentences": sentences}
        print_json({"points": points, "plot": str(out) if out else None, "verdict": answer})
        return
    _show(rows, points, sentences)
    if out is not None:
        typer.echo(f"\nwritten: {out}")


def _show(rows: Sequence[Row], beside: Sequence[dict[str, Any]], sentences: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for header in ("", "accuracy", "leakage", "without it", "worth it", "best attacker", "budget"):
        table.add_column(header)
    lines: list[tuple[float, tuple[str, ...]]] = [(row.accuracy.mean, _line(row)) for row in rows]
    for end in beside:
        if end["role"] in ("local", "identity", "gated"):
            place = percent(end["accuracy"]), f"{end['excess_leakage']:.2f}"
            lines.append((end["accuracy"], (end["name"], *place, "", "", end["best_attacker"] or "", "")))
    for _, line in sorted(lines, key=lambda line: -line[0]):
        table.add_row(*line)
    Console().print(table)
    for sentence in sentences:
        typer.echo(sentence)


def _line(row: Row) -> tuple[str, ...]:
    spread = "" if row.accuracy.std is None else f" ± {100 * row.accuracy.std:.2f}"
    return (
        row.name,
        percent(row.accuracy.mean) + spread,
        f"{row.excess_leakage.mean:.2f}",
        "not known" if row.mixture is None else percent(row.mixture.mean),
        row.worth,
        ", ".join(dict.fromkeys(row.attackers)),
        row.budget,
    )
