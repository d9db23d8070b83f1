"""`sfumato demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.options import expand_images, option
from sfumato.cli.output import percent, print_json, print_table
from sfumato.cli.progress import bars

if TYPE_CHECKING:
    from sfumato.apps.demo import Demonstration


@command
def demo(
    images: Annotated[list[Path] | None, typer.Argument(help="Your own images, besides the shipped ones.")] = None,
    out: Annotated[Path, option("DIR", "Folder for the panel image.", "--out", "-o")] = Path("demo-output"),
    as_json: options.Json = False,
) -> None:
    """Classify the shipped images through a local server that sees only obfuscated ones.

    Takes a few seconds. The server is a separate process. Predictions on the originals are computed here for
    comparison. The panel image shows each original, its payload, and what the deobfuscator reconstructs, if the
    bundle has one.

    Example: `sfumato demo my-cat.jpg`
    """
    from sfumato.apps.demo import run_demo

    with bars(quiet=as_json) as shown:
        demonstration = run_demo(
            expand_images(images or []), out, on_row=lambda done, total: shown.progress("classifying", done, total)
        )
    if as_json:
        print_json(demonstration.as_json())
    else:
        _print(demonstration)


def _print(shown: Demonstration) -> None:
    _print_table(shown)
    device, cloud, both = shown.tally("device"), shown.tally("cloud"), shown.tally()
    total = len(shown.rows)
    originals = f"{both.right_on_originals} of {both.known} on the originals (computed here, never sent)."
    if shown.gated:
        typer.echo(
            f"{device.images} of {total} handled on-device, nothing sent: {device.right} of {device.known} correct."
        )
        typer.echo(f"{cloud.images} of {total} sent, obfuscated: {cloud.right} of {cloud.known} correct.")
        typer.echo(f"{both.right} of {both.known} correct in all, {originals}")
        saw = "saw only what was sent, obfuscated"
    else:
        typer.echo(f"{both.right} of {both.known} correct on the obfuscated images, {originals}")
        saw = "saw obfuscated images only"
    typer.echo(f"The server ({shown.server}) {saw}. The panel: {shown.panel}")
    typer.echo("This is not encryption. To measure how much an attacker reconstructs: sfumato audit")


def _print_table(shown: Demonstration) -> None:
    if shown.gated:  # one column more, in a terminal of the usual 80 characters
        headers = ["image", "true label", "original", "prediction", "by", "score", "bytes", "ms"]
    else:
        headers = ["image", "true label", "on the original", "on the obfuscated", "score", "bytes sent", "ms"]
    rows: list[list[str | Text]] = []
    for row in shown.rows:
        colour = "white" if row.truth is None else "green" if row.answer == row.truth else "red"
        rows.append(
            [
                row.image,
                row.truth or "?",
                row.original,
                Text(row.answer, style=colour),
                *([row.answered_by] if shown.gated else []),
                percent(row.probability, 0),
                f"{row.payload_bytes:,}",
                f"{row.obfuscate_ms + row.round_trip_ms:.1f}",
            ]
        )
    print_table(headers, rows, numbers=range(len(headers) - 3, len(headers)))
