"""`sfumato references`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import image_size
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.cli.progress import bars


@app.command()
def references(
    data: Annotated[
        str, typer.Option(help="cifar10, faces, a folder, or a hub id; both its splits are used.")
    ] = "cifar10",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit every image to this size.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random images and of the codes.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a results file here.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what one would reconstruct who knows only the label, the mean colour, ...: the scale for an audit.

    Example: `sfumato references -o results/references.json`
    """
    with needs_train_extra():
        from sfumato.lab.audit.references import write_references
        from sfumato.lab.data import load_images
    from rich.console import Console
    from rich.table import Table

    from sfumato.cli.progress import bars

    sides = image_size(size)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is measured in vain
    train, test = load_images(data, "train", size=sides), load_images(data, "test", size=sides)
    with bars(quiet=as_json) as progressing:
        result = write_references(out, train, test, seed=seed, progress=progressing.progress)
    if as_json:
        print_json(result)
        return
    shown = Table(title=f"on {len(test):,} test images of {test.source}", title_justify="left")
    for header in ("what is known", "MSE", "PSNR, dB", "SSIM"):
        shown.add_column(header, justify="left" if header == "what is known" else "right", no_wrap=True)
    for row in result["references"]:
        shown.add_row(row["name"], f"{row['mse']:.4f}", f"{row['psnr_db']:.2f}", f"{row['ssim']:.3f}")
    Console().print(shown)
    if out is not None:
        typer.echo(f"written: {out}")
