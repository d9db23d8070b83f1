"""`sfumato export --to int8`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.options import open_classifier, open_obfuscator
from sfumato.cli.output import needs_extra, percent, print_json

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle


def export_int8(
    path: Path,
    out: Path,
    *,
    classifier: Path | None,
    data: str,
    label_column: str | None,
    calibrate_on: int,
    images: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write an obfuscator in 8-bit integers as a bundle of its own, measure it, and name the audit that it needs."""
    with needs_extra("train"):
        from sfumato.lab.data import load_train_test
        from sfumato.lab.export.int8 import quantize, remarks

    obfuscator, served = open_obfuscator(path), open_classifier(classifier)
    size = (obfuscator.preprocessing.height, obfuscator.preprocessing.width)
    train, test, _ = load_train_test(data, size=size, label_column=label_column)
    made = quantize(obfuscator, out, served, train.subset(calibrate_on), test.subset(images), overwrite=overwrite)
    words = ["sfumato", "audit", str(out)]
    words += ["--classifier", str(classifier)] if classifier else []
    words += ["--data", data] if data != "cifar10" else []
    words += ["--label-column", label_column] if label_column else []
    following = shlex.join([*words, "--budget", "standard"])
    if as_json:
        print_json(
            {
                "bundle": str(made.path),
                "quantized": made.recipe["quantized"],
                "figures": made.figures,
                "notes": remarks(made),
                "audited": False,
                "next": following,
            }
        )
        return
    for line in (*_described(made), *(f"  note: {note}" for note in remarks(made)), f"\nnext: {following}"):
        typer.echo(line)


def _described(made: Bundle) -> list[str]:
    figures, how = made.figures, made.recipe["quantized"]
    compared: dict[str, Any] = figures["quantized"]
    lines = [
        f"bundle: {made.path}",
        f"  made of {how['from']['name']} ({how['from']['fingerprint'][:19]}…), calibrated on {how['calibrated_on']:,} "
        f"training images of {how['data']}",
        f"  time of one image: {compared['time_of_float32']:.2f} of that in float32, on this machine",
        f"  size of its ONNX file: {compared['megabytes']:.2f} MB, before {compared['megabytes_before']:.2f} MB",
    ]
    for name, what in (
        ("accuracy_obfuscated", "accuracy in the cloud"),
        ("accuracy_device", "accuracy on-device"),
        ("accuracy_gated", "accuracy with the gate"),
        ("offload_rate", "offload rate"),
    ):
        if name in figures:
            lines.append(f"  {what}: {percent(figures[name])}, before {percent(compared[f'{name}_before'])}")
    changed = [f"predictions in the cloud {percent(compared['answers_changed'])}"]
    if "codes_changed" in compared:
        changed.append(f"codes {percent(compared['codes_changed'])}")
    lines.append(f"  changed, of {figures['test_images']:,} test images: {', '.join(changed)}")
    return [*lines, "  leakage: not audited; an audit of the original does not hold for it"]
