"""`sfumato demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import expand_images
from sfumato.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from sfumato.apps.demo import Demonstration


@app.command()
def demo(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images of your own, besides the shipped ones.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the panel image.")] = Path("demo-output"),
    as_json: JsonOption = False,
) -> None:
    """See it work: a server as a process of its own answers on images that it never sees.

    The shipped CIFAR-10 test images are obfuscated here and sent; the classifier's answers on the
    originals are computed here for comparison. The panel shows the original, the payload, and, if the bundle has
    the deobfuscator it was trained against, what that reconstructs. If the bundle has a gate, images that the device
    is sure of are answered here and not sent.

    Example: `sfumato demo my-cat.jpg`
    """
    from rich.console import Console
    from rich.progress import Progress

    from sfumato.apps.demo import run_demo

    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task("classifying", total=None)
        shown = run_demo(
            expand_images(images or []),
            out,
            on_row=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(shown.as_json())
    else:
        _print(shown)


def _print(shown: Demonstration) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(shown))
    over_all = shown.tally()
    originals = f"{over_all.correct_on_originals} of {over_all.known} on the originals (computed here, never sent)."
    if shown.gated:
        for line in _by_place(shown):
            console.print(line)
        console.print(f"{over_all.correct} of {over_all.known} right over all, {originals}")
        saw = "saw of these images only what was sent, obfuscated"
    else:
        console.print(f"{over_all.correct} of {over_all.known} right on the obfuscated images, {originals}")
        saw = "saw obfuscated images only"
    console.print(f"The server ({shown.server}) {saw}. The panel: {shown.panel}", soft_wrap=True)
    console.print("This is not encryption: how much a determined attacker reconstructs is a matter of measurement.")


def _table(shown: Demonstration) -> Table:
    from rich.markup import escape
    from rich.table import Table

    if shown.gated:  # one column more, in a terminal of the usual 80 characters
        table = Table("image", "true label", "original", "answer", "by", "sure", "bytes", "ms")
        table.show_edge = table.pad_edge = False
    else:
        table = Table("image", "true label", "on the original", "on the obfuscated", "sure", "bytes sent", "ms")
    for column in table.columns[-3:]:
        column.justify = "right"
    for row in shown.rows:
        colour = "white" if row.truth is None else "green" if row.prediction == row.truth else "red"
        table.add_row(
            escape(row.image),
            row.truth or "?",
            row.original,
            f"[{colour}]{row.prediction}[/{colour}]",
            *([row.predicted_by] if shown.gated else []),
            f"{row.probability:.0%}",
            f"{row.payload_bytes:,}",
            f"{row.obfuscate_ms + row.round_trip_ms:.1f}",
        )
    return table


def _by_place(shown: Demonstration) -> list[str]:
    device, cloud = shown.tally("device"), shown.tally("cloud")
    total = len(shown.rows)
    return [
        f"{device.images} of {total} answered on the device, nothing sent: {device.correct} of {device.known} right.",
        f"{cloud.images} of {total} sent, obfuscated: {cloud.correct} of {cloud.known} right.",
    ]
