"""`sfumato evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.evaluate_cost import print_cost
from sfumato.cli.options import flag, image_size, load_split, open_classifier, open_obfuscator, option, refuse_others
from sfumato.cli.output import needs_extra, percent, prepare, print_figures, print_json, print_table, write_result
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.data import ImageSet

ObfuscatorsArgument = Annotated[
    list[str] | None, typer.Argument(help="Obfuscator bundles. Default: the shipped one. With --cost: architectures.")
]
ClassifiersOption = Annotated[
    list[Path] | None, option("BUNDLE", "Classifier bundle; repeatable. Default: the shipped one.")
]
RoundOption = Annotated[bool, flag("--round", "Round payloads to 8-bit images, as `classify --files --round` does.")]
TransferOption = Annotated[bool, flag("--transfer", "Also allow a classifier that the obfuscator was not trained for.")]
AuditsOption = Annotated[
    list[Path] | None, option("DIR", "Folder of audits, to show the leakage beside the accuracy; repeatable.")
]
CostOption = Annotated[bool, flag("--cost", "Count parameters and multiply-accumulates of architectures instead.")]


@command
def evaluate(
    context: typer.Context,
    bundles: ObfuscatorsArgument = None,
    classifier: ClassifiersOption = None,
    data: options.Data = "cifar10",
    images: options.Images = None,
    out: options.OutFile = None,
    as_json: options.Json = False,
    label_column: options.LabelColumn = None,
    rounding: RoundOption = False,
    transfer: TransferOption = False,
    audits: AuditsOption = None,
    cost: CostOption = False,
    size: Annotated[str, option("HxW", "With --cost: the image size.")] = "32x32",
    classes: Annotated[int, option("N", "With --cost: the number of classes.", min=2)] = 10,
) -> None:
    """Measure accuracy on plain and on obfuscated test images, through the files that are deployed.

    Takes seconds to minutes. Several bundles or several classifiers give a table, which also shows how an obfuscator
    transfers to classifiers that it was not trained for. `--cost` counts what obfuscators add to a classifier, without
    any bundle.

    Examples: `sfumato evaluate runs/mine/bundle --classifier runs/resnet/bundle -o results/mine.json`,
    `sfumato evaluate runs/mine/bundle --classifier runs/vgg7/bundle --classifier runs/convmixer/bundle`,
    `sfumato evaluate --cost resnet18 vgg19`
    """
    if cost:
        refuse_others(context, {"bundles", "cost", "size", "classes", "as_json"}, "not with --cost")
        print_cost(bundles or [], image_size(size) or (32, 32), classes, as_json=as_json)
        return
    refuse_others(context, context.params.keys() - {"size", "classes"}, "only with --cost")
    prepare(out)
    obfuscators = [open_obfuscator(Path(path)) for path in bundles or []] or [open_obfuscator(None)]
    classifiers = [open_classifier(path) for path in classifier or []] or [open_classifier(None)]
    table = transfer or len(obfuscators) > 1 or len(classifiers) > 1
    if table and rounding:
        raise SfumatoError("--round is for one bundle and the classifier that it was trained for")
    if audits and not table:
        raise SfumatoError("--audits is for several bundles or classifiers, or --transfer")
    with needs_extra("train"):
        test = load_split(data, "test", obfuscators[0], label_column, images)
    if table:
        result = _transfer(obfuscators, classifiers, test, audits or [])
    else:
        result = _accuracy(obfuscators[0], classifiers[0], test, rounding=rounding)
    write_result(out, result)
    if as_json:
        print_json(result)
    elif table:
        _print_table(result)
    else:
        print_figures(result["figures"])


def _transfer(
    obfuscators: list[Bundle], classifiers: list[Bundle], test: ImageSet, audits: list[Path]
) -> dict[str, Any]:
    from sfumato.lab.evaluation.transfer import transfer
    from sfumato.lab.report.points import read_audits

    known = {file: audit for folder in audits for file, audit in read_audits(folder).items()}
    return transfer(obfuscators, classifiers, test, audits=known)


def _accuracy(obfuscator: Bundle, served: Bundle, test: ImageSet, *, rounding: bool) -> dict[str, Any]:
    from sfumato.artifacts.provenance import provenance
    from sfumato.lab.evaluation.accuracy import evaluate_obfuscator

    return {
        "figures": evaluate_obfuscator(obfuscator, served, test, rounding=rounding),
        "rounded_to_8_bits": rounding,
        "obfuscator": {"recipe": obfuscator.recipe, "files": obfuscator.files, "training": obfuscator.provenance},
        "classifier": {
            "recipe": served.recipe,
            "fingerprint": served.classifier_fingerprint,
            "training": served.provenance,
        },
        "measured": provenance(data=test.source, data_sha256=test.sha256),
    }


def _print_table(found: dict[str, Any]) -> None:
    plain = ["plain images", *(percent(entry["accuracy_plain"]) for entry in found["classifiers"]), "1"]
    rows = [plain]
    for entry in found["obfuscators"]:
        leak = "not audited" if entry["excess_leakage"] is None else f"at least {entry['excess_leakage']:.2f}"
        accuracy = [
            percent(value) + ("" if seen else "*") for value, seen in zip(entry["accuracy"], entry["seen"], strict=True)
        ]
        rows.append([entry["name"], *accuracy, leak])
    headers = ("accuracy", *(entry["name"] for entry in found["classifiers"]), "excess leakage")
    print_table(headers, rows, numbers=range(1, len(headers)))
    typer.echo("* not seen in training")
