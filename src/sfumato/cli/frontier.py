"""`sfumato frontier`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.audit import BudgetOption, EachOption
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import percent, prepare, print_json, print_table
from sfumato.cli.progress import bars
from sfumato.errors import AuditError, SfumatoError

if TYPE_CHECKING:
    from sfumato.lab.audit.schema import Point
    from sfumato.lab.report.tradeoff import Row
    from sfumato.lab.sweep.jobs import Engine, Make
    from sfumato.lab.sweep.plan import Sweep


EngineName = Literal["process", "ray"]


PlotOption = Annotated[
    Path | None,
    option("PATH", "Folder: the PNG file. Recipe: the sweep's folder. [default: runs/NAME-frontier]", "--out", "-o"),
]


@dataclass(frozen=True)
class RayOptions:
    """How a sweep runs on Ray; each attribute is the option of its name."""

    parallel: Annotated[int | None, option("N", "Ray: points at once, at most.", min=1)] = None
    cpus: Annotated[float | None, option("X", "Ray: cores for each point. [default: 1]", min=0.1)] = None
    gpus: Annotated[float | None, option("X", "Ray: GPUs for each point. [default: 1 if any]", min=0)] = None
    address: Annotated[str | None, option("ADDRESS", "Ray: a cluster that shares the folders.")] = None


@command("train")
def frontier(
    context: typer.Context,
    what: Annotated[Path, typer.Argument(help="Folder of audits' JSON files, or the recipe of an obfuscator (.toml).")],
    *,
    out: PlotOption = None,
    highlight: Annotated[str | None, option("NAME", "Folder: the audit to highlight in the plot.")] = None,
    sweep: Annotated[list[str] | None, option("KEY=V,V,...", "Recipe: values to sweep; repeat it for a grid.")] = None,
    plan: Annotated[bool, flag("--plan", "Recipe: list the points and the remaining time.")] = False,
    seeds: Annotated[int, option("N", "Recipe: train each point with N seeds.", min=1)] = 1,
    budget: BudgetOption = "quick",
    images: EachOption = None,
    set_: Annotated[list[str] | None, option("KEY=VALUE", "Change a value at all points; repeatable.", "--set")] = None,
    local: options.Local = None,
    local_recipe: Annotated[Path | None, option("RECIPE", "Train the on-device baseline by this recipe.")] = None,
    compare: options.Compare = None,
    engine: Annotated[EngineName, typer.Option(help="One point after the other, or several with Ray.")] = "process",
    ray: RayOptions,
    as_json: options.Json = False,
) -> None:
    """Plot the privacy-utility trade-off, and report where offloading pays off.

    Takes seconds for a folder of audits. Of a recipe, it trains and audits every point of the sweep, which takes
    minutes to days: `--plan` lists the points and their time first. After Ctrl-C, the same command continues.

    Examples:
    - `sfumato frontier results/audits --highlight cifar10-resnet20-sketch -o frontier.png`
    - `sfumato frontier recipes/cifar10-resnet20-sketch.toml --sweep code_bits=4,8,16 --seeds 3 --plan`
    """
    if what.suffix != ".toml":
        allowed = {"what", "highlight", "out", "as_json"}
        options.refuse_others(context, allowed, f"only of a recipe (a .toml file), and {what} is none")
        _of_folder(what, highlight, out, as_json=as_json)
        return
    options.refuse_others(context, context.params.keys() - {"highlight"}, "only of a folder of audits")
    if engine != "ray":
        options.refuse_others(context, context.params.keys() - vars(ray).keys(), "only with --engine ray")
    keep_freed_memory()
    from sfumato.lab.audit.budget import BUDGETS
    from sfumato.lab.sweep.plan import plan_sweep

    planned = plan_sweep(
        what,
        out or Path("runs") / f"{what.stem}-frontier",
        BUDGETS[budget],
        dials=sweep or (),
        seeds=seeds,
        overrides=set_ or (),
        images_each=images,
        local=local,
        local_recipe=local_recipe,
        compare_with=compare,
    )
    if plan:
        _print_plan(planned, as_json=as_json)
    else:
        _of_sweep(planned, engine, ray, as_json=as_json)


def _print_plan(sweep: Sweep, *, as_json: bool) -> None:
    from sfumato.lab.runs.speed import spoken
    from sfumato.lab.sweep.plan import listing

    entries = listing(sweep)
    if as_json:
        print_json({"plan": [vars(entry) for entry in entries]})
        return
    for entry in entries:
        typer.echo(entry.line)
    left = sum(entry.seconds or 0 for entry in entries)
    typer.echo(f"in all about {spoken(left)} on this machine, one after the other" if left else "nothing is left")


def _of_sweep(sweep: Sweep, engine: EngineName, ray: RayOptions, *, as_json: bool) -> None:
    from sfumato.lab.report.tradeoff import rows_of
    from sfumato.lab.sweep.jobs import in_turn, make
    from sfumato.lab.sweep.run import on_ray, run_sweep

    runs: Engine = in_turn
    with bars() as shown:
        make_with: Make = partial(make, progress=shown.progress)
        if engine == "ray":
            given = {name: value for name, value in vars(ray).items() if value is not None}
            runs, make_with = on_ray(sweep.folder / "ray", **given), make
        found = run_sweep(sweep, engine=runs, make=make_with, say=shown.say)
    frontier = found.frontier
    if as_json:
        typer.echo(found.file.read_text(encoding="utf-8"), nl=False)
    else:
        _print([*found.rows, *rows_of(found.comparison)], found.comparison, frontier.verdict.sentences)
        typer.echo(f"\nwritten: {frontier.plot}\nwritten: {found.file}")
    if failed := frontier.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise SfumatoError(f"{len(failed)} of {len(sweep.jobs)} points failed: {reasons}")


def _of_folder(folder: Path, highlight: str | None, out: Path | None, *, as_json: bool) -> None:
    from sfumato.lab.audit.points import collect
    from sfumato.lab.report.frontier import save_frontier_png
    from sfumato.lab.report.tradeoff import PaysOff, rows_of, verdict

    points = collect(folder)
    if not points:
        raise AuditError(f"{folder} holds no audit; `sfumato audit` writes one: copy its audit.json there")
    if highlight is not None:
        if highlight not in [point.name for point in points]:
            raise AuditError(f"no audit of {highlight!r} in {folder}; there are {', '.join(p.name for p in points)}")
        points = [point.model_copy(update={"role": "this"}) if point.name == highlight else point for point in points]
    if out is not None:
        prepare(out)
        save_frontier_png(points, out)
    rows = rows_of(points)
    pays_off: PaysOff = "unknown"
    sentences = ["No audit here has both accuracy and leakage."]
    if rows:
        pays_off, sentences = verdict(rows)
    if as_json:
        result = {"pays_off": pays_off, "sentences": sentences}
        plot = str(out) if out else None
        print_json({"points": [point.as_json for point in points], "plot": plot, "verdict": result})
        return
    _print(rows, points, sentences)
    if out is not None:
        typer.echo(f"\nwritten: {out}")


def _print(rows: Sequence[Row], points: Sequence[Point], sentences: Sequence[str]) -> None:
    lines: list[tuple[float, tuple[str, ...]]] = [(row.accuracy.mean, _line(row)) for row in rows]
    for end in points:
        if end.role in ("local", "identity", "gated"):
            place = percent(end.accuracy), f"{end.excess_leakage:.2f}"
            lines.append((end.accuracy, (end.name, *place, "", "", end.best_attacker or "", "")))
    headers = ("", "accuracy", "leakage", "no obfuscation", "pays off", "best attacker", "budget")
    print_table(headers, [line for _, line in sorted(lines, key=lambda line: -line[0])])
    for sentence in sentences:
        typer.echo(sentence)


def _line(row: Row) -> tuple[str, ...]:
    spread = "" if row.accuracy.std is None else f" ± {100 * row.accuracy.std:.2f}"
    return (
        row.name,
        percent(row.accuracy.mean) + spread,
        f"{row.excess_leakage.mean:.2f}",
        "unknown" if row.mixture is None else percent(row.mixture.mean),
        row.pays_off,
        ", ".join(dict.fromkeys(row.attackers)),
        row.budget,
    )
