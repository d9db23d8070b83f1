"""`sfumato quantize`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import obfuscator_bundle
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json
from sfumato.errors import BundleError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle

NOT_AUDITED = "not audited; what an audit of the original says does not hold for it"


@app.command()
def quantize(
    bundle: Annotated[
        Path | None, typer.Argument(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    classifier: Annotated[
        Path | None, typer.Option(help="Bundle of its classifier. Default: the shipped one.", show_default=False)
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="cifar10, faces, a folder, or a hub id; calibrated on its training images."),
    ] = "cifar10",
    label_column: Annotated[
        str | None, typer.Option(help="The column with the classes. Default: found by its type or name.")
    ] = None,
    calibrate_on: Annotated[int, typer.Option(min=1, help="Training images to calibrate on.")] = 500,
    images: Annotated[int | None, typer.Option(min=1, help="Measure on only the first so many test images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was quantised into the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make 8-bit integers of an obfuscator, for processors that compute faster in them.

    What comes out is another obfuscator, in a bundle of its own: its accuracy is measured anew, beside the original's,
    and it counts as not audited until `sfumato audit` has attacked it. Says so if it is no faster on this machine.

    Example: `sfumato quantize runs/mine/bundle -o runs/mine-int8 --classifier runs/resnet/bundle`
    """
    with needs_train_extra():
        from sfumato.lab.data import load_train_test
        from sfumato.lab.export.int8 import quantize as run_quantize
        from sfumato.lab.export.int8 import remarks
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.shipped import classifier_bundle
    from sfumato.cli.progress import bars

    given = obfuscator_bundle(bundle)
    if given.is_file():
        raise BundleError(
            f"{given} is a file; the folder of a bundle is needed, which says how images are prepared and which "
            "classifier it is for"
        )
    obfuscator = Bundle.load(given, kind="obfuscator")
    served = Bundle.load(classifier or classifier_bundle(), kind="classifier")
    size = (obfuscator.preprocessing.height, obfuscator.preprocessing.width)
    with bars() as shown:
        train, test, _ = load_train_test(data, size=size, label_column=label_column, progress=shown.progress)
        calibration, test = train.subset(calibrate_on), test.subset(images)
        made = run_quantize(obfuscator, out, served, calibration, test, overwrite=overwrite, progress=shown.progress)
    notes = remarks(made)
    following = _audit_command(out, classifier, data, label_column)
    if as_json:
        print_json(
            {
                "bundle": str(made.path),
                "quantized": made.recipe.quantized,
                "figures": made.figures.to_json(),
                "notes": notes,
                "audited": False,
                "next": following,
            }
        )
        return
    for line in _told(made):
        typer.echo(line)
    for note in notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"\nnext: {following}")


def _told(made: Bundle) -> list[str]:
    from sfumato.lab.evaluation.accuracy import Evaluation
    from sfumato.lab.export.int8 import Int8Comparison

    figures, compared, how = Evaluation.from_json(made.figures), Int8Comparison.of(made), made.recipe["quantized"]
    lines = [
        f"bundle: {made.path}",
        f"  made of {how['from']['name']} ({how['from']['fingerprint'][:19]}…), calibrated on {how['calibrated_on']:,} "
        f"training images of {how['data']}",
        f"  time of one image: {compared.time_of_float32:.2f} of that in float32, on this machine",
        f"  size of its ONNX file: {compared.megabytes:.2f} MB, before {compared.megabytes_before:.2f} MB",
    ]
    for what, after, before in (
        ("accuracy of the cloud", figures.accuracy_obfuscated, compared.accuracy_obfuscated_before),
        ("accuracy of the device alone", figures.accuracy_device, compared.accuracy_device_before),
        ("accuracy with the gate", figures.accuracy_gated, compared.accuracy_gated_before),
        ("sent with the gate", figures.offload_rate, compared.offload_rate_before),
    ):
        if after is not None and before is not None:
            lines.append(f"  {what}: {percent(after)}, before {percent(before)}")
    changed = [f"predictions of the cloud {percent(compared.predictions_changed)}"]
    if compared.codes_changed is not None:
        changed.append(f"codes {percent(compared.codes_changed)}")
    lines.append(f"  changed, of {figures.test_images:,} test images: {', '.join(changed)}")
    return [*lines, f"  leakage: {NOT_AUDITED}"]


def _audit_command(out: Path, classifier: Path | None, data: str, label_column: str | None) -> str:
    words = ["sfumato", "audit", str(out)]
    words += ["--classifier", str(classifier)] if classifier else []
    words += ["--data", data] if data != "cifar10" else []
    words += ["--label-column", label_column] if label_column else []
    return shlex.join([*words, "--budget", "standard"])
