"""`sfumato transfer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json


@app.command()
def transfer(
    bundles: Annotated[list[Path], typer.Argument(help="Obfuscator bundles, for the same classes and size.")],
    to: Annotated[
        list[Path], typer.Option("--to", metavar="BUNDLE", help="A classifier, known to them or not; repeatable.")
    ],
    data: Annotated[str, typer.Option(help="cifar10, a folder, or a hub id; its test images are used.")] = "cifar10",
    images: Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.")] = None,
    audits: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with audits of the obfuscators, to put their leakage beside; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a results file here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what classifiers that an obfuscator was not made for make of what it sends.

    Example: `sfumato transfer runs/mine/bundle --to runs/vgg7/bundle --to runs/convmixer/bundle -o results/mine.json`
    """
    with needs_train_extra():
        from sfumato.lab.audit.points import read_audits
        from sfumato.lab.data import load_images
        from sfumato.lab.evaluation.transfer import Leakage
        from sfumato.lab.evaluation.transfer import transfer as measure
    from sfumato.artifacts.bundle import Bundle, write_json
    from sfumato.cli.progress import bars

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is measured in vain
    obfuscators = [Bundle.load(path, kind="obfuscator") for path in bundles]
    classifiers = [Bundle.load(path, kind="classifier") for path in to]
    known = {file: audit.as_json for folder in audits or [] for file, audit in read_audits(folder).items()}
    size = obfuscators[0].preprocessing
    with bars() as shown:
        test = load_images(data, "test", size=(size.height, size.width), progress=shown.progress).subset(images)
        found = measure(obfuscators, classifiers, test, leakages=leakages, progress=shown.progress)
    if out is not None:
        write_json(out, found.to_json())
    if as_json:
        print_json(found.to_json())
        return
    names = [classifier.name for classifier in found.classifiers]
    width = max(len(name) for name in ("plain images", *(row.name for row in found.obfuscators))) + 2
    typer.echo(" " * width + "  ".join(f"{name:>12}" for name in names) + "   excess leakage")
    plain = [classifier.accuracy_plain for classifier in found.classifiers]
    typer.echo("plain images".ljust(width) + _row(plain, [True] * len(plain), names) + "   1")
    for row in found.obfuscators:
        leak = "not audited" if row.leakage is None else f"{row.leakage.excess_leakage:.2f} at least"
        typer.echo(row.name.ljust(width) + _row(row.accuracy, row.trained_for, names) + f"   {leak}")
    typer.echo("* not seen in training")
    if out is not None:
        typer.echo(f"written: {out}")


def _row(values: Sequence[float], trained_for: Sequence[bool], names: list[str]) -> str:
    marked = [percent(value) + (" " if known else "*") for value, known in zip(values, trained_for, strict=True)]
    widths = [max(12, len(name)) for name in names]
    return "  ".join(f"{value:>{width}}" for value, width in zip(marked, widths, strict=True))
