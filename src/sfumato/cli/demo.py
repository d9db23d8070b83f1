"""`sfumato demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.options import option
from sfumato.cli.output import percent, print_json, print_table
from sfumato.cli.progress import bars

if TYPE_CHECKING:
    from sfumato.apps.demo import Demonstration


@command()
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
            options.expand_images(images or []), out, on_row=lambda *counts: shown.progress("classifying", *counts)
        )
    if as_json:
        print_json(demonstration.as_json())
    else:
        _print(demonstration)


def _print(shown: Demonstration) -> None:
    rows = []
    for row in shown.rows:
        final = row.prediction
        colour = "white" if row.truth is None else "green" if final.label == row.truth else "red"
        names = row.image, row.truth or "?", row.original, Text(final.label, style=colour), final.predicted_by
        time_ms = f"{final.obfuscate_ms + final.round_trip_ms:.1f}"
        rows.append((*names, percent(final.probability, 0), f"{final.payload_bytes:,}", time_ms))
    headers = ("image", "true label", "original", "prediction", "by", "score", "bytes", "ms")
    print_table(headers, rows, numbers=(5, 6, 7))
    device, cloud, both = shown.tally("device"), shown.tally("cloud"), shown.tally()
    images = len(shown.rows)
    unlike = [row.image for row in shown.rows if row.prediction.out_of_distribution]
    if unlike:
        typer.echo(f"Unlike the training images, so do not rely on these predictions: {', '.join(unlike)}.")
    typer.echo(
        f"{device.images} of {images} handled on-device, nothing sent: {device.correct} of {device.known} correct.\n"
        f"{cloud.images} of {images} sent, obfuscated: {cloud.correct} of {cloud.known} correct.\n"
        f"{both.correct} of {both.known} correct in all, {both.correct_on_originals} of {both.known} on the originals "
        f"(computed here, never sent).\n"
        f"The server ({shown.server}) saw only what was sent, obfuscated. The panel: {shown.panel}\n"
        "This is not encryption. To measure how much an attacker reconstructs: sfumato audit"
    )
