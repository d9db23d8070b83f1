"""`sfumato baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import print_figures, print_json, print_table
from sfumato.cli.progress import bars
from sfumato.errors import TrainingError


@command("train")
def baseline(
    name: Annotated[str | None, typer.Argument(help="A method; `--list` shows them.")] = None,
    list_: Annotated[bool, flag("--list", "List the methods, and the meaning of their strengths.")] = False,
    strength: Annotated[float | None, option("X", "How strong. Default: see --list.")] = None,
    classifier: options.Classifier = None,
    data: options.Data = "cifar10",
    out: Annotated[Path | None, option("DIR", "Folder. [default: runs/baselines/NAME]", "--out", "-o")] = None,
    label_column: options.LabelColumn = None,
    allow_outside: options.AllowOutside = False,
    images: options.Images = None,
    epochs: Annotated[float, option("X", "Of the methods that learn; 0.5 is half of the images.")] = 1.0,
    seed: Annotated[int, option("N", "Of keys, initial weights and the order of images.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make an obfuscator by a simple or a published method, for comparison.

    Takes seconds, or minutes for a method that learns; writes a bundle with its accuracy. `joint` also writes the
    classifier that it retrains.

    Example: `sfumato baseline blur --strength 1.5 -o runs/baselines/blur`
    """
    if list_:
        _list(as_json)
        return
    if name is None:
        raise typer.BadParameter("name a method; sfumato baseline --list shows them")
    keep_freed_memory()
    from sfumato.lab.baselines import build, make

    folder = out or Path("runs") / "baselines" / name
    if (folder / "bundle").exists() and not overwrite:
        raise TrainingError(f"{folder / 'bundle'} exists already; --overwrite replaces it")
    served = options.open_classifier(classifier)
    method = build(name, served.preprocessing.height, served.preprocessing.width, strength=strength, seed=seed)
    with bars() as shown:
        train, test = (
            options.load_split(
                data, split, served, label_column, images, allow_outside=allow_outside, progress=shown.progress
            )
            for split in ("train", "test")
        )
        folder.mkdir(parents=True, exist_ok=True)  # before the long part
        bundle = make(method, name, folder, served, train, test, epochs=epochs, progress=shown.progress)
    if as_json:
        print_json({"bundle": str(bundle.path), "recipe": bundle.recipe.to_json(), "figures": bundle.figures.to_json()})
        return
    typer.echo(f"bundle: {bundle.path}")
    print_figures(bundle.figures.to_json(), indent="  ")


def _list(as_json: bool) -> None:
    from sfumato.lab.baselines import METHODS

    if as_json:
        names = ("summary", "default", "learns", "stochastic", "source")
        rows = [
            {"name": name, "strength": one.strength_help or None, **{key: getattr(one, key) for key in names}}
            for name, one in METHODS.items()
        ]
        print_json({"baselines": rows})
        return
    lines = []
    for name, one in METHODS.items():
        default = "-" if one.default is None else f"{one.default:g}"
        lines.append((name, one.summary, one.strength_help or "-", default, one.source))
    print_table(("name", "what it does", "strength", "default", "source"), lines)
