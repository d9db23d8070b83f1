"""`sfumato export`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.options import flag, option
from sfumato.cli.output import needs_extra, percent, print_json
from sfumato.cli.progress import bars
from sfumato.errors import BundleError, SfumatoError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.onnx_file import ClassifierFunction
    from sfumato.lab.export.executorch import Comparison


@dataclass(frozen=True)
class Given:
    """What an export is compared with and on; each attribute is the option of its name."""

    classifier: options.Classifier = None
    data: Annotated[str | None, option("DATA", "To compare on. Default: shipped images; of int8: cifar10.")] = None
    overwrite: Annotated[bool, flag("--overwrite", "Replace what an earlier export wrote.")] = False
    images: Annotated[int | None, option("N", "Compare on N test images. Default: 200; of int8: all.", min=1)] = None
    label_column: options.LabelColumn = None
    allow_outside: options.AllowOutside = False


@command()
def export(
    context: typer.Context,
    bundle: options.ObfuscatorArgument = None,
    *,
    to: Annotated[Literal["executorch", "int8"], typer.Option("--to", help="The format.")] = "executorch",
    device: Annotated[bool, flag("--device", "Copy what a device needs, and nothing else, as a bundle.")] = False,
    out: Annotated[Path, option("PATH", "The file mine.pte, or else the new bundle.", "--out", "-o")],
    given: Given,
    calibrate_on: Annotated[int, option("N", "int8: training images to calibrate on.", min=1)] = 500,
    as_json: options.Json = False,
) -> None:
    """Write an obfuscator for a phone's runtime, or in 8-bit integers, and compare it with the original.

    Takes about a minute. `--to executorch` writes a program for one image in float32; nothing is written if its
    outputs differ from the ONNX file's. **It does not fail closed**: the app has to do the checks, the gate and the
    encoding (docs/how-to/phones.md). Needs `pip install 'sfumato[executorch]'`.

    `--to int8` writes another obfuscator, for processors that are faster in 8-bit integers. It is not audited until
    `sfumato audit` has attacked it.

    `--device` makes a bundle to hand out of one by an earlier version, which has the deobfuscator in it: training
    images may be read from that.

    Examples:
    - `sfumato export --device runs/old/bundle -o mine`
    - `sfumato export runs/mine/bundle --to executorch -o mine.pte`
    - `sfumato export runs/mine/bundle --to int8 -o runs/mine-int8 --classifier runs/resnet/bundle`
    """
    path = options.obfuscator_path(bundle)
    if path.is_file():
        raise BundleError(f"{path} is a file; name the folder of its bundle")
    if device:
        about = {"out": out, "overwrite": given.overwrite, "as_json": as_json}
        options.run_mode(context, "device", _export_device, bundle=path, **about)
        return
    if to == "int8":
        _export_int8(path, out, given, calibrate_on, as_json=as_json)
        return
    options.refuse_others(context, context.params.keys() - {"calibrate_on"}, "only with --to int8")
    if out.exists() and not given.overwrite:
        raise SfumatoError(f"{out} exists; --overwrite replaces it")
    with needs_extra("executorch"):
        import executorch  # noqa: F401  (a missing library is named at once)

        from sfumato.lab.export.executorch import export_executorch, sample_images

    source = options.open_obfuscator(path)
    if given.data is None:
        compared_on = sample_images(source.preprocessing)
    else:
        source_images = (given.data, "test", source, given.label_column, given.images or 200)
        test = options.load_split(*source_images, allow_outside=given.allow_outside)
        compared_on = (test.images.float() / 255).numpy()
    with bars(quiet=as_json) as shown:
        shown.progress("lowering the network, and comparing it with the ONNX file", 0, 1)
        compared = export_executorch(source, out, compared_on, classify=_classifier(source, given.classifier))
    if as_json:
        print_json({"file": str(out), "bytes": out.stat().st_size, "format": to, **compared.to_json()})
    else:
        _print_program(source, out, compared)


def _export_device(bundle: Path, *, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write the bundle for a device, and print what stayed behind."""
    from sfumato.artifacts.lab_files import write_device_bundle

    source = options.open_obfuscator(bundle)
    made = write_device_bundle(source, out, overwrite=overwrite)
    left = sorted(source.files.keys() - made.files.keys())
    if as_json:
        print_json({"bundle": str(made.path), "files": sorted(made.files), "left_out": left})
        return
    typer.echo(f"bundle: {made.path} ({', '.join(sorted(made.files))})")
    typer.echo(f"  left out: {', '.join(left) or 'nothing'}")


def _classifier(source: Bundle, path: Path | None) -> ClassifierFunction | None:
    """Return the obfuscator's classifier; None if no bundle of it is at hand."""
    from sfumato.artifacts.onnx_file import ClassifierFunction

    found = options.open_classifier(path)
    if path is not None:
        source.check_classifier(found)
    return ClassifierFunction(found) if found.classifier_identity == source.classifier_identity else None


def _print_program(source: Bundle, out: Path, compared: Comparison) -> None:
    size = f"{source.preprocessing.height}, {source.preprocessing.width}"
    output = f"the classifier's input (1, 3, {size}) float32"
    if compared.codes_changed is not None:
        output += f"; the on-device logits (1, {len(source.labels)}) float32; the code, uint8"
    counts = {
        "codes": compared.codes_changed,
        "on-device predictions": compared.device_predictions_changed,
        "predictions in the cloud": compared.cloud_predictions_changed,
    }
    changed = ", ".join(f"{count} {what}" for what, count in counts.items() if count is not None)
    typer.echo(f"written: {out} ({out.stat().st_size / 1e6:.2f} MB)")
    typer.echo(f"  input: one image (1, 3, {size}) float32 in [0, 1]")
    typer.echo(f"  output: {output}")
    typer.echo(
        f"  compared with the ONNX file on {compared.images} images: largest difference "
        f"{compared.largest_difference:.0e}" + (f"; changed: {changed}" if changed else "")
    )
    typer.echo("  the app has to do the checks, the gate and the encoding: docs/how-to/phones.md")


def _export_int8(path: Path, out: Path, given: Given, calibrate_on: int, *, as_json: bool) -> None:
    """Write an obfuscator in 8-bit integers as a bundle of its own, measure it, and name the audit that it needs."""
    with needs_extra("train"):
        from sfumato.lab.data import load_train_test
        from sfumato.lab.export.int8 import quantize, remarks

    obfuscator, served = options.open_obfuscator(path), options.open_classifier(given.classifier)
    data, column = given.data or "cifar10", given.label_column
    size = (obfuscator.preprocessing.height, obfuscator.preprocessing.width)
    with bars(quiet=as_json) as shown:
        outside = given.allow_outside
        train, test, _ = load_train_test(
            data, size=size, label_column=column, allow_outside=outside, progress=shown.progress
        )
        calibration, test = train.subset(calibrate_on), test.subset(given.images)
        made = quantize(obfuscator, out, served, calibration, test, overwrite=given.overwrite, progress=shown.progress)
    words = ["sfumato", "audit", str(out)]
    words += ["--classifier", str(given.classifier)] if given.classifier else []
    words += ["--data", data] if data != "cifar10" else []
    words += ["--label-column", column] if column else []
    words += ["--allow-outside"] if outside else []
    following = shlex.join([*words, "--budget", "standard"])
    if as_json:
        about = {"bundle": str(made.path), "quantized": made.recipe.quantized, "figures": made.figures.to_json()}
        print_json({**about, "notes": remarks(made), "audited": False, "next": following})
        return
    for line in (*_described(made), *(f"  note: {note}" for note in remarks(made)), f"\nnext: {following}"):
        typer.echo(line)


def _described(made: Bundle) -> list[str]:
    from sfumato.lab.evaluation.accuracy import Evaluation
    from sfumato.lab.export.int8 import Int8Comparison

    figures, compared = Evaluation.from_json(made.figures.to_json()), Int8Comparison.of(made)
    how = dict(made.recipe.quantized or {})
    lines = [
        f"bundle: {made.path}",
        f"  made of {how['from']['name']} ({how['from']['fingerprint'][:19]}…), calibrated on {how['calibrated_on']:,} "
        f"training images of {how['data']}",
        f"  time of one image: {compared.time_of_float32:.2f} of that in float32, on this machine",
        f"  size of its ONNX file: {compared.megabytes:.2f} MB, before {compared.megabytes_before:.2f} MB",
    ]
    for what, after, before in (
        ("accuracy in the cloud", figures.accuracy_obfuscated, compared.accuracy_obfuscated_before),
        ("accuracy on-device", figures.accuracy_device, compared.accuracy_device_before),
        ("accuracy with the gate", figures.accuracy_gated, compared.accuracy_gated_before),
        ("offload rate", figures.offload_rate, compared.offload_rate_before),
    ):
        if after is not None and before is not None:
            lines.append(f"  {what}: {percent(after)}, before {percent(before)}")
    changed = [f"predictions in the cloud {percent(compared.predictions_changed)}"]
    if compared.codes_changed is not None:
        changed.append(f"codes {percent(compared.codes_changed)}")
    lines.append(f"  changed, of {figures.test_images:,} test images: {', '.join(changed)}")
    return [*lines, "  leakage: not audited; an audit of the original does not hold for it"]
