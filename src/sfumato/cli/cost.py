"""`sfumato cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.lab.models import Cost


@app.command()
def cost(
    classifiers: Annotated[
        list[str] | None, typer.Argument(help="Names such as resnet18. [default: all]", show_default=False)
    ] = None,
    height: Annotated[int, typer.Option(min=8, help="Rows of the image, a multiple of 8.")] = 32,
    width: Annotated[int, typer.Option(min=8, help="Columns of the image, a multiple of 8.")] = 32,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the classifier.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Print what obfuscators cost beside a classifier: parameters, multiply-accumulates, and their ratio.

    The paper's overhead counts the upsampling before the projection; ours comes after it, which computes
    the same with fewer operations.

    Example: `sfumato cost resnet18 vgg19`
    """
    with needs_train_extra():
        from sfumato.lab import models

    if height % models.Obfuscator.size_multiple or width % models.Obfuscator.size_multiple:
        raise SfumatoError(f"image sides must be multiples of {models.Obfuscator.size_multiple}, got {height}x{width}")
    unknown = [name for name in classifiers or [] if name not in models.CLASSIFIERS]
    if unknown:
        raise SfumatoError(f"unknown classifier {unknown[0]!r}; known: {', '.join(models.CLASSIFIERS)}")
    ours = models.cost(models.Obfuscator(), height=height, width=width)
    papers = models.cost(models.Obfuscator(order="paper"), height=height, width=width)
    bits = max(8, models.class_bits(classes))
    sketch = models.cost(models.Sketcher(height, width, classes=classes, bits=bits), height=height, width=width)
    rows: list[dict[str, Any]] = []
    for name in classifiers or models.CLASSIFIERS:
        try:
            theirs = models.cost(models.build_classifier(name, classes), height=height, width=width)
        except RuntimeError as error:
            raise SfumatoError(f"{name} does not take images of {height}x{width}: {error}") from error
        rows.append(
            {
                "classifier": name,
                "params": theirs.params,
                "macs": theirs.macs,
                "overhead_params": ours.params / theirs.params,
                "overhead_macs": ours.macs / theirs.macs,
                "overhead_macs_paper_order": papers.macs / theirs.macs,
                "overhead_macs_sketch": sketch.macs / theirs.macs,
            }
        )
    obfuscator = {"params": ours.params, "macs": ours.macs, "macs_paper_order": papers.macs}
    if as_json:
        counts = {"params": sketch.params, "macs": sketch.macs}
        print_json({"height": height, "width": width, "obfuscator": obfuscator, "sketch": counts, "classifiers": rows})
        return
    _print_tables(rows, obfuscator, sketch, f"3x{height}x{width}")


def _print_tables(rows: list[dict[str, Any]], obfuscator: dict[str, int], sketch: Cost, shape: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"obfuscator for {shape}: {obfuscator['params']:,} parameters, {obfuscator['macs']:,} MACs "
        f"({obfuscator['macs_paper_order']:,} in the paper's order); sketch: {sketch.params:,} parameters, "
        f"{sketch.macs:,} MACs"
    )
    table = Table(title="what the obfuscator adds", title_justify="left")
    for header in ("classifier", "params", "MACs", "+params", "+MACs", "paper's", "sketch"):
        table.add_column(header, justify="left" if header == "classifier" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["classifier"],
            _millions(row["params"]),
            _millions(row["macs"]),
            percent(row["overhead_params"]),
            percent(row["overhead_macs"]),
            percent(row["overhead_macs_paper_order"]),
            percent(row["overhead_macs_sketch"]),
        )
    console.print(table)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{2 if count < 1e8 else 0}f} M"
