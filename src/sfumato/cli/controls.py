"""`sfumato controls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.audit import BudgetName
from sfumato.cli.inputs import image_size
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.cli.progress import bars
from sfumato.cli.train import keep_freed_memory


@app.command()
def controls(
    data: Annotated[str, typer.Option(help="cifar10, faces, a folder, or a hub id.")] = "cifar10",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit every image to this size.", show_default=False)
    ] = None,
    budget: Annotated[BudgetName, typer.Option(help="How long the decoders may train.")] = BudgetName.QUICK,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a results file here.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the audit's decoders whether they work: on maps that lose nothing, and on one that tells the label alone.

    Every audit does this by itself. Exit code 1 if one fails.

    Example: `sfumato controls --budget standard -o results/controls.json`
    """
    keep_freed_memory()
    with needs_train_extra():
        import torch

        from sfumato.lab.audit.budget import BUDGETS
        from sfumato.lab.audit.sanity_checks import decoder_checks
        from sfumato.lab.data import load_train_test
    from rich.console import Console
    from rich.table import Table

    from sfumato.artifacts.bundle import write_json
    from sfumato.artifacts.provenance import provenance
    from sfumato.cli.progress import bars

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is measured in vain
    train, test, _ = load_train_test(data, size=image_size(size))
    images = BUDGETS[budget.value].sanity_check_images
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with bars(quiet=as_json) as shown:
        found = decoder_checks(train, test, images=images, device=device, progress=shown.progress)
    result = {
        "sanity_checks": [check.as_json for check in found],
        "measured": provenance(
            budget=budget.value,
            images_seen=images,
            accelerator=device.type,
            train={"data": train.source, "data_sha256": train.sha256, "images": len(train)},
            test={"data": test.source, "data_sha256": test.sha256, "images": len(test)},
        ).to_json(),
    }
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        rows = Table(title=f"{images:,} training images a decoder, {data}", title_justify="left")
        for header in ("control", "", "measured", "needed"):
            rows.add_column(header)
        for control in found:
            mark = "passed" if control.passed else "FAILED"
            rows.add_row(control.name, mark, control.measured, control.needed)
        Console().print(rows)
    if not all(control.passed for control in found):
        raise typer.Exit(1)
