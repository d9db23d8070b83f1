"""`sfumato export`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.output import JsonOption, needs_executorch_extra, print_json
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.onnx_file import OnnxFunction
    from sfumato.lab.export.executorch import Comparison


class FormatName(StrEnum):
    """What an obfuscator can be exported to."""

    EXECUTORCH = "executorch"


@app.command()
def export(
    bundle: Annotated[
        Path, typer.Argument(help="Obfuscator bundle, with the weights that `train` wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as mine.pte.", show_default=False)],
    to: Annotated[FormatName, typer.Option("--to", help="For which runtime.")] = FormatName.EXECUTORCH,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Its classifier's bundle, to count answers that change. Default: the shipped one, if it fits."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Test images to compare on: cifar10, faces, a folder, a hub id. Default: 40 shipped ones."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="With --data: the first so many.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an obfuscator's network for apps on phones: an ExecuTorch program for one image, in float32.

    It is run beside the bundle's ONNX file first; if its outputs are others, nothing is written.

    **The network alone does not fail closed.** Checks, gate and encoding are not in the file; docs/device.md says what
    the app has to do before anything is sent. Needs `pip install 'sfumato[executorch]'`.

    Example: `sfumato export runs/mine/bundle --to executorch -o mine.pte`
    """
    if out.exists() and not force:
        raise SfumatoError(f"{out} exists; --force overwrites it")
    with needs_executorch_extra():
        import executorch  # noqa: F401  (what is missing is said at once)

        from sfumato.lab.data import load_images
        from sfumato.lab.export.executorch import export_executorch, sample_images
    from rich.console import Console

    from sfumato.artifacts.bundle import Bundle

    source = Bundle.load(bundle, kind="obfuscator")
    size = source.preprocessing
    if data is None:
        given = sample_images(size)
    else:
        test = load_images(data, "test", size=(size.height, size.width)).subset(images)
        given = (test.images.float() / 255).numpy()
    classify = _classifier(source, classifier)
    with Console(stderr=True).status("lowering the network, and running it beside the ONNX file"):
        compared = export_executorch(source, out, given, classify=classify)
    if as_json:
        print_json({"file": str(out), "bytes": out.stat().st_size, "format": to.value, **asdict(compared)})
        return
    typer.echo(f"written: {out} ({out.stat().st_size / 1e6:.2f} MB)")
    typer.echo(f"  input: one image (1, 3, {size.height}, {size.width}) float32 in [0, 1]")
    typer.echo(f"  output: {_outputs(source, compared)}")
    typer.echo(f"  {_said(compared)}")
    typer.echo("  the network alone: checks, gate and encoding are the app's; docs/device.md says which")


def _classifier(source: Bundle, given: Path | None) -> OnnxFunction | None:
    """What the cloud answers; None if no bundle of it is at hand."""
    from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
    from sfumato.artifacts.onnx_file import OnnxFunction
    from sfumato.artifacts.shipped import classifier_bundle

    found = Bundle.load(given or classifier_bundle(), kind="classifier")
    if found.classifier_fingerprint == source.classifier_fingerprint:
        return OnnxFunction(found.file(CLASSIFIER_ONNX))
    if given is not None:
        raise SfumatoError(
            f"{source.path} was made for classifier {source.classifier_fingerprint[:19]}…, {given} is "
            f"{found.classifier_fingerprint[:19]}…"
        )
    return None


def _outputs(source: Bundle, compared: Comparison) -> str:
    size = source.preprocessing
    payload = f"the classifier's input (1, 3, {size.height}, {size.width}) float32"
    if compared.codes_changed is None:
        return payload
    return f"{payload}; the device's logits (1, {len(source.labels)}) float32; the code, uint8"


def _said(compared: Comparison) -> str:
    counts: list[tuple[str, Any]] = [
        ("codes", compared.codes_changed),
        ("answers of the device", compared.device_answers_changed),
        ("answers of the cloud", compared.cloud_answers_changed),
    ]
    changed = ", ".join(f"{count} {what}" for what, count in counts if count is not None)
    return f"beside the ONNX file on {compared.images} images: largest difference {compared.largest_difference:.0e}" + (
        f"; changed: {changed}" if changed else ""
    )
