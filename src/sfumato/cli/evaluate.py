"""`sfumato evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import obfuscator_bundle
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json


@app.command()
def evaluate(
    bundle: Annotated[
        Path | None, typer.Argument(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Bundle of its classifier. Default: the shipped one.", show_default=False)
    ] = None,
    data: Annotated[
        str, typer.Option(help="cifar10, faces, a folder, or a hub id; its test images are used.")
    ] = "cifar10",
    label_column: Annotated[
        str | None, typer.Option(help="The column with the classes. Default: found by its type or name.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.")] = None,
    rounding: Annotated[
        bool, typer.Option("--round", help="Round the payload to 8-bit images, as `classify --files --round` does.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a results file here.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on plain and on obfuscated images, through the very files that are shipped.

    Example: `sfumato evaluate runs/mine/bundle --classifier runs/resnet/bundle -o results/mine.json`
    """
    with needs_train_extra():
        from sfumato.lab.data import load_images
        from sfumato.lab.evaluation.accuracy import evaluate_obfuscator
    from sfumato.artifacts.bundle import Bundle, write_json
    from sfumato.artifacts.provenance import provenance
    from sfumato.artifacts.shipped import classifier_bundle
    from sfumato.cli.progress import bars

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, so that nothing is measured in vain
    obfuscator = Bundle.load(obfuscator_bundle(bundle), kind="obfuscator")
    served = Bundle.load(classifier or classifier_bundle(), kind="classifier")
    size = (obfuscator.preprocessing.height, obfuscator.preprocessing.width)
    with bars() as shown:
        test = load_images(data, "test", size=size, label_column=label_column, progress=shown.progress).subset(images)
        found = evaluate_obfuscator(obfuscator, served, test, rounding=rounding, progress=shown.progress)
    figures = found.to_json()
    result = {
        "figures": figures,
        "rounded_to_8_bits": rounding,
        "obfuscator": {
            "recipe": obfuscator.recipe.to_json(),
            "files": dict(obfuscator.files),
            "training": obfuscator.provenance.to_json(),
        },
        "classifier": {
            "recipe": served.recipe.to_json(),
            "fingerprint": served.classifier_fingerprint,
            "training": served.provenance.to_json(),
        },
        "measured": provenance(data=test.source, data_sha256=test.sha256).to_json(),
    }
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
        return
    for name, value in figures.items():
        typer.echo(f"{name}: {percent(value) if name.startswith(('accuracy', 'offload_rate')) else value}")
    if out is not None:
        typer.echo(f"written: {out}")
