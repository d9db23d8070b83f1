"""`sfumato transfer`."""

from __future__ import annotations

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
        from sfumato.lab.evaluation.transfer import transfer as measure
    from sfumato.artifacts.bundle import Bundle, write_json

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is measured in vain
    obfuscators = [Bundle.load(path, kind="obfuscator") for path in bundles]
    classifiers = [Bundle.load(path, kind="classifier") for path in to]
    known = {file: audit.as_json for folder in audits or [] for file, audit in read_audits(folder).items()}
    size = obfuscators[0].preprocessing
    test = load_images(data, "test", size=(size.height, size.width)).subset(images)
    found = measure(obfuscators, classifiers, test, audits=known)
    if out is not None:
        write_json(out, found)
    if as_json:
        print_json(found)
        return
    names = [entry["name"] for entry in found["classifiers"]]
    width = max(len(entry["name"]) for entry in [*found["obfuscators"], {"name": "plain images"}]) + 2
    typer.echo(" " * width + "  ".join(f"{name:>12}" for name in names) + "   excess leakage")
    plain = [entry["accuracy_plain"] for entry in found["classifiers"]]
    typer.echo("plain images".ljust(width) + _row(plain, [True] * len(plain), names) + "   1")
    for entry in found["obfuscators"]:
        leak = "not audited" if entry["excess_leakage"] is None else f"{entry['excess_leakage']:.2f} at least"
        typer.echo(entry["name"].ljust(width) + _row(entry["accuracy"], entry["seen"], names) + f"   {leak}")
    typer.echo("* not seen in training")
    if out is not None:
        typer.echo(f"written: {out}")


def _row(values: list[float], seen: list[bool], names: list[str]) -> str:
    marked = [percent(value) + (" " if known else "*") for value, known in zip(values, seen, strict=True)]
    widths = [max(12, len(name)) for name in names]
    return "  ".join(f"{value:>{width}}" for value, width in zip(marked, widths, strict=True))
