"""`sfumato baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json
from sfumato.cli.train import keep_freed_memory
from sfumato.errors import TrainingError


@app.command()
def baseline(
    name: Annotated[str | None, typer.Argument(help="Which one; `--list` shows them.", show_default=False)] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Bundle of its classifier. Default: the shipped one.", show_default=False)
    ] = None,
    data: Annotated[str, typer.Option(help="cifar10, faces, a folder, or a hub id.")] = "cifar10",
    label_column: Annotated[
        str | None, typer.Option(help="The column with the classes. Default: found by its type or name.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="What it means: see `--list`. Default: likewise.", show_default=False)
    ] = None,
    epochs: Annotated[float, typer.Option(help="Of those that learn; 0.5 is half of the images.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of keys, first weights and the order of the images.")] = 0,
    images: Annotated[int | None, typer.Option(min=2, help="Use only the first so many images.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder. [default: runs/baselines/NAME]", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle in the folder.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show all baselines and their strengths.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an obfuscator by a simple or a published method, to compare with.

    `joint` writes the classifier that it retrains beside its own bundle.

    Example: `sfumato baseline blur --strength 1.5 -o runs/baselines/blur`
    """
    if list_:
        _show(as_json)
        return
    if name is None:
        raise typer.BadParameter("say which baseline, or --list")
    keep_freed_memory()
    with needs_train_extra():
        from sfumato.lab.baselines import build, make
        from sfumato.lab.data import load_images
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.shipped import classifier_bundle
    from sfumato.cli.progress import bars

    folder = out or Path("runs") / "baselines" / name
    if (folder / "bundle").exists() and not overwrite:
        raise TrainingError(f"{folder / 'bundle'} exists already; --overwrite replaces it")
    served = Bundle.load(classifier or classifier_bundle(), kind="classifier")
    size = (served.preprocessing.height, served.preprocessing.width)
    method = build(name, *size, strength=strength, seed=seed)
    with bars() as shown:
        train, test = (
            load_images(data, split, size=size, label_column=label_column, progress=shown.progress).subset(images)
            for split in ("train", "test")
        )
        folder.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is learned in vain
        bundle = make(method, name, folder, served, train, test, epochs=epochs, progress=shown.progress)
    if as_json:
        print_json({"bundle": str(bundle.path), "recipe": bundle.recipe.to_json(), "figures": bundle.figures.to_json()})
        return
    typer.echo(f"bundle: {bundle.path}")
    for figure, value in bundle.figures.to_json().items():
        typer.echo(f"  {figure}: {percent(value) if figure.startswith('accuracy') else value}")


def _show(as_json: bool) -> None:
    with needs_train_extra():
        from sfumato.lab.baselines import METHODS
    rows = [
        {
            "name": name,
            "summary": method.summary,
            "strength": method.strength_help or None,
            "default": method.default,
            "learns": method.learns,
            "stochastic": method.stochastic,
            "source": method.source,
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        print_json({"baselines": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what it does", "strength", "default", "source", box=None)
    for row in rows:
        default = "-" if row["default"] is None else f"{row['default']:g}"
        table.add_row(str(row["name"]), str(row["summary"]), str(row["strength"] or "-"), default, str(row["source"]))
    Console().print(table)
