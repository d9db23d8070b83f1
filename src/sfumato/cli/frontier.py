"""`sfumato frontier`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.errors import AuditError


@app.command()
def frontier(
    folder: Annotated[Path, typer.Argument(help="Folder with audits' JSON files, of one data set.")],
    this: Annotated[str | None, typer.Option(help="Name of the audit to point out.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw the plot into this PNG file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare audits: accuracy against excess leakage, beside a classifier on the device and the plain picture.

    Example: `sfumato frontier results/audits --this cifar10-resnet20-obfuscator -o docs/frontier.png`
    """
    with needs_train_extra():
        from sfumato.audit.frontier import collect, save_frontier_png
    from rich.console import Console
    from rich.table import Table

    points = collect(folder)
    if this is not None:
        if this not in [point["name"] for point in points]:
            raise AuditError(f"no audit of {this!r} in {folder}; there are {', '.join(p['name'] for p in points)}")
        points = [{**point, "role": "this"} if point["name"] == this else point for point in points]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_frontier_png(points, out)
    if as_json:
        print_json({"points": points, "plot": str(out) if out else None})
        return
    shown = Table()
    for header in ("", "accuracy", "excess leakage", "best attacker", "budget"):
        shown.add_column(header)
    for point in sorted(points, key=lambda point: -point["accuracy"]):
        leakage = point["excess_leakage"]
        shown.add_row(
            point["name"],
            f"{100 * point['accuracy']:.2f} %",
            "not measured" if leakage is None else f"{leakage:.2f}",
            point["best_attacker"] or "",
            point["budget"] or "",
        )
    Console().print(shown)
    if out is not None:
        typer.echo(f"written: {out}")
