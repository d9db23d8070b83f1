"""`sfumato adopt`: makes a bundle of a classifier from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import image_size
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.lab.classifiers import UserMetadata

SizeOption = Annotated[
    str | None, typer.Option(metavar="HxW", help="Its input's size. Default: what it says.", show_default=False)
]
MeanOption = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Subtracted from values in [0, 1]. Default: what it says.")
]
StdOption = Annotated[str | None, typer.Option(metavar="R,G,B", help="Divided by after that. Default: what it says.")]
LabelsOption = Annotated[
    Path | None, typer.Option(help="Text file, one class a line in the order of its outputs. Default: what it says.")
]


@app.command()
def adopt(
    classifier: Annotated[
        str,
        typer.Argument(
            help="A transformers folder or hub id, a .pt2 or .onnx file, or package.module:callable.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.")],
    name: Annotated[str | None, typer.Option(help="What a server calls it. Default: its own name.")] = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    labels: LabelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle of a classifier of your own; the classifier is not changed.

    Everything else takes the bundle: `classifier = "BUNDLE"` in a recipe, `serve`, `evaluate`, `audit`, `init`.
    No file's pickles are loaded, and no code that comes with a model is run.

    Examples: `sfumato adopt google/vit-base-patch16-224 -o vit`,
    `sfumato adopt net.onnx -o net --mean 0,0,0 --std 1,1,1 --labels labels.txt`
    """
    with needs_train_extra():
        from sfumato.lab.classifiers import import_classifier
    bundle = import_classifier(classifier, out, user_metadata(name, size, mean, std, labels))
    look = bundle.preprocessing
    if as_json:
        print_json(
            {
                "bundle": str(bundle.path),
                "name": bundle.name,
                "classes": len(bundle.labels),
                "size": [look.height, look.width],
                "fingerprint": bundle.classifier_fingerprint,
                "notes": list(bundle.recipe.notes or ()),
            }
        )
        return
    typer.echo(f"bundle: {bundle.path}")
    typer.echo(f"  {bundle.recipe.origin}, {len(bundle.labels)} classes, images of {look.height}x{look.width}")
    typer.echo(f"  input: (image in [0, 1] - {_numbers(look.mean)}) / {_numbers(look.std)}")
    for note in list(bundle.recipe.notes or ()):
        typer.echo(f"  note: {note}")


def user_metadata(
    name: str | None, size: str | None, mean: str | None, std: str | None, labels: Path | None
) -> UserMetadata:
    """Return what the flags say about a classifier.

    Raises:
        SfumatoError: a flag cannot be understood, or the file of labels cannot be read.
    """
    from sfumato.lab.classifiers import UserMetadata

    return UserMetadata(image_size(size), _three(mean, "--mean"), _three(std, "--std"), _lines(labels), name)


def _three(text: str | None, flag: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise SfumatoError(f"{flag} takes three numbers, such as 0.485,0.456,0.406; got {text!r}") from None
    return red, green, blue


def _lines(file: Path | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SfumatoError(f"cannot read labels from {file}: {getattr(error, 'strerror', 'not text')}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        raise SfumatoError(f"{file} must hold one label a line, without empty lines")
    return tuple(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
