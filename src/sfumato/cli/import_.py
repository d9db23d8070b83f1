"""`sfumato import`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.conclusion import command_line, init_command
from sfumato.cli.options import flag, option
from sfumato.cli.output import print_json
from sfumato.cli.progress import bars
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.lab.classifiers import Metadata


_LEVELS = 255
_LEAST_STD = 1e-3
"""What is nearly divided by zero is a mistake."""


@dataclass(frozen=True)
class Description:
    """A user's description of a classifier; each attribute is the option of its name."""

    size: Annotated[str | None, option("HxW", "Its input size. Default: from its metadata.")] = None
    mean: Annotated[str | None, option("R,G,B", "Subtracted from values in [0, 1]. Default: from its metadata.")] = None
    std: Annotated[str | None, option("R,G,B", "Divided by after that. Default: from its metadata.")] = None
    labels: Annotated[Path | None, option("FILE", "Text file, one class a line. Default: from its metadata.")] = None
    class_map: Annotated[
        Path | None, option("FILE", "TOML or JSON, name = index or [indices] of outputs. Default: all are classes.")
    ] = None
    multi_label: Annotated[
        bool, flag("--multi-label", "Several classes may be present at once. Default: from its metadata.")
    ] = False

    def metadata(self, name: str | None = None) -> Metadata:
        """Return the description, with the name at a server.

        Raises:
            SfumatoError: an option is malformed, or the file of labels or of the class map cannot be used.
        """
        from sfumato.lab.classifiers import Metadata, read_class_map

        mean, std = _three(self.mean, "--mean", least=0), _three(self.std, "--std", least=_LEAST_STD)
        class_map = read_class_map(self.class_map) if self.class_map else None
        found = Metadata(options.image_size(self.size), mean, std, _lines(self.labels), name, class_map)
        return replace(found, labelling="multi-label") if self.multi_label else found


@command("train")
def import_(
    classifier: Annotated[
        str,
        typer.Argument(help="A transformers folder or hub id, a .pt2 file, package.module:callable, or an .onnx file."),
    ],
    out: Annotated[Path, option("DIR", "Folder of the bundle.", "--out", "-o")],
    *,
    description: Description,
    name: Annotated[str | None, option("NAME", "The model's name at a server.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a bundle of your own classifier, which is not changed.

    Takes seconds. The other commands take the bundle: `serve`, `evaluate`, `audit`, `init`, and `classifier = "BUNDLE"`
    in a recipe. No pickle is loaded, and no code that comes with a model is run.

    Examples:
    - `sfumato import google/vit-base-patch16-224 -o vit`
    - `sfumato import mynet:network -o net --size 64x64 --mean 0,0,0 --std 1,1,1 --labels labels.txt`
    - `sfumato import google/vit-base-patch16-224 -o pets --class-map pets.toml`
    """
    from sfumato.lab.classifiers import import_classifier, trains_through

    with bars(quiet=as_json):
        bundle = import_classifier(classifier, out, description.metadata(name))
    inputs, notes = bundle.preprocessing, list(bundle.recipe.notes or ())
    if as_json:
        about = {"bundle": str(bundle.path), "name": bundle.name, "classes": len(bundle.labels)}
        about |= {} if bundle.class_map is None else {"outputs": bundle.outputs}
        about |= {"labelling": bundle.labelling}
        size = [inputs.height, inputs.width]
        print_json({**about, "size": size, "fingerprint": bundle.classifier_fingerprint, "notes": notes})
        return
    typer.echo(f"bundle: {bundle.path}")
    classes = f"{len(bundle.labels)} classes"
    classes += "" if bundle.class_map is None else f" of {bundle.outputs:,} outputs"
    classes += ", any number of them in an image" if bundle.multi_label else ""
    typer.echo(f"  {bundle.recipe.origin}, {classes}, images of {inputs.height}x{inputs.width}")
    typer.echo(f"  input: (image in [0, 1] - {_numbers(inputs.mean)}) / {_numbers(inputs.std)}")
    typer.echo(f"  its name at a server: {bundle.name}")
    for note in notes:
        typer.echo(f"  note: {note}")
    following = command_line("serve", out)
    if trains_through(bundle):
        following = init_command(out, "IMAGES", multi_label=bundle.multi_label)
    typer.echo(f"next: {following}")


def _three(text: str | None, option: str, *, least: float) -> tuple[float, float, float] | None:
    """Return three numbers of which images in [0, 1] can have the means or the deviations; one stands for all three."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        raise SfumatoError(
            f"{option} takes three numbers, such as 0.485,0.456,0.406, or one for all; got {text!r}"
        ) from None
    if not all(least <= value <= 1 for value in (red, green, blue)):
        hint = ""
        if all(least <= value / _LEVELS <= 1 for value in (red, green, blue)):
            scaled = ",".join(f"{value / _LEVELS:.4g}" for value in numbers)
            hint = f"; numbers for images in [0, 255] are divided by 255, mean and std alike: {option} {scaled}"
        raise SfumatoError(
            f"{option} is for images in [0, 1], and so at least {least:g} and at most 1; got {text}{hint}"
        )
    return red, green, blue


def _lines(file: Path | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    lines = [line.strip() for line in options.read_text(file, "labels").rstrip().splitlines()]
    if not lines or not all(lines):
        raise SfumatoError(f"{file} must hold one label a line, without empty lines")
    return tuple(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
