"""`sfumato demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import expand_pictures
from sfumato.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from sfumato.demo import Demonstration


@app.command()
def demo(
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="Pictures of your own, besides the shipped ones.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panel picture.")] = Path("demo-output"),
    as_json: JsonOption = False,
) -> None:
    """See it work: a server as a process of its own answers on pictures that it never sees.

    The shipped CIFAR-10 test pictures are obfuscated here and sent; the classifier's answers on the
    originals are computed here for comparison. The panel shows the original, what travels, and what the
    trained deobfuscator restores of it.

    Example: `sfumato demo my-cat.jpg`
    """
    from rich.console import Console
    from rich.progress import Progress

    from sfumato.demo import run_demo

    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task("classifying", total=None)
        shown = run_demo(
            expand_pictures(pictures or []),
            out,
            on_row=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(shown.as_json())
    else:
        _print(shown)


def _print(shown: Demonstration) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("picture", "true label", "on the original", "on the obfuscated", "sure", "bytes sent", "ms")
    for column in table.columns[4:]:
        column.justify = "right"
    for row in shown.rows:
        colour = "white" if row.truth is None else "green" if row.obfuscated == row.truth else "red"
        table.add_row(
            escape(row.picture),
            row.truth or "?",
            row.original,
            f"[{colour}]{row.obfuscated}[/{colour}]",
            f"{row.probability:.0%}",
            f"{row.payload_bytes:,}",
            f"{row.obfuscate_ms + row.round_trip_ms:.1f}",
        )
    console = Console()
    console.print(table)
    known = [row for row in shown.rows if row.truth is not None]
    original = sum(row.original == row.truth for row in known)
    obfuscated = sum(row.obfuscated == row.truth for row in known)
    console.print(
        f"{obfuscated} of {len(known)} right on the obfuscated pictures, {original} of {len(known)} on the originals "
        "(computed here, never sent)."
    )
    console.print(f"The server ({shown.server}) saw obfuscated pictures only. The panel: {shown.panel}", soft_wrap=True)
    console.print("This is not encryption: how much a determined attacker restores is a matter of measurement.")
