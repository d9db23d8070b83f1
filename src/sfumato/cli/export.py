"""`sfumato export`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.artifacts.hub import HubPlace
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


_hub_option = partial(option, rich_help_panel="Model card, of --to hub")


@dataclass(frozen=True)
class Card:
    """What a model card says besides what the bundle knows; each attribute is the option of its name."""

    licence: Annotated[str | None, _hub_option("ID", "Licence of the files: apache-2.0, ...", "--license")] = None
    data_licence: Annotated[
        str | None, _hub_option("TEXT", "Licence of the training data, in words.", "--data-license")
    ] = None
    membership: Annotated[
        Path | None, _hub_option("FILE", "What `sfumato audit --membership -o FILE` wrote of the bundle.")
    ] = None
    public: Annotated[bool, _hub_option("", "Make a new repository public. Default: private.", "--public")] = False


_OF_CARDS = {"licence", "data_licence", "membership", "public"}


@command()
def export(
    context: typer.Context,
    bundle: options.ObfuscatorArgument = None,
    *,
    to: Annotated[
        Literal["executorch", "int8", "hub", "signed"], typer.Option("--to", help="The format.")
    ] = "executorch",
    device: Annotated[bool, flag("--device", "Copy what a device needs, and nothing else, as a bundle.")] = False,
    out: Annotated[Path, option("PATH", "File mine.pte, or the new bundle, or hf://owner/name.", "--out", "-o")],
    key: Annotated[
        Path | None, option("FILE", "Private key, Ed25519 PEM, of --to signed; --to hub may have one.")
    ] = None,
    given: Given,
    calibrate_on: Annotated[int, option("N", "int8: training images to calibrate on.", min=1)] = 500,
    card: Card,
    as_json: options.Json = False,
) -> None:
    """Write an obfuscator for a phone's runtime or in 8-bit integers, and compare it; or sign or push a bundle.

    Takes about a minute. `--to executorch` writes a program for one image in float32; nothing is written if its
    outputs differ from the ONNX file's. **It does not fail closed**: the app has to do the checks, the gate and the
    encoding (docs/how-to/phones.md). Needs `pip install 'sfumato[executorch]'`.

    `--to int8` writes another obfuscator, for processors that are faster in 8-bit integers. It is not audited until
    `sfumato audit` has attacked it.

    `--to hub` pushes an obfuscator's or a classifier's bundle to the Hugging Face hub, or writes to a folder what it
    would push: what a device or a server needs, and a model card with all figures. No deobfuscator, no other weights of
    the lab's and no image are pushed.

    `--to signed` writes the same to a folder, without a model card, and signs it for `--trusted-key` of other commands.
    A key: `openssl genpkey -algorithm ed25519 -out private.pem`. Needs `pip install 'sfumato[sign]'`.

    `--device` makes a bundle to hand out of one by an earlier version, which has the deobfuscator in it: training
    images may be read from that.

    Examples:
    - `sfumato export --device runs/old/bundle -o mine`
    - `sfumato export runs/mine/bundle --to executorch -o mine.pte`
    - `sfumato export runs/mine/bundle --to int8 -o runs/mine-int8 --classifier runs/resnet/bundle`
    - `sfumato export runs/mine/bundle --to signed --key private.pem -o mine-signed`
    - `sfumato export runs/mine/bundle --to hub -o hf://owner/mine --license apache-2.0`
    """
    path = options.obfuscator_path(bundle)
    if path.is_file():
        raise BundleError(f"{path} is a file; name the folder of its bundle")
    place = HubPlace.parse(out)
    if to == "hub":
        allowed = {"bundle", "to", "out", "key", "overwrite", "as_json", *_OF_CARDS}
        options.refuse_others(context, allowed, "not with --to hub")
        target = out if place is None else place
        _export_to_hub(path, target, card, key, overwrite=given.overwrite, as_json=as_json)
        return
    options.refuse_others(context, context.params.keys() - _OF_CARDS, "only with --to hub")
    if place is not None:
        raise SfumatoError(f"{place} is on the hub; add --to hub, or name a file or folder")
    if to == "signed":
        allowed = {"bundle", "to", "out", "key", "overwrite", "as_json"}
        options.refuse_others(context, allowed, "not with --to signed")
        _export_signed(path, out, key, overwrite=given.overwrite, as_json=as_json)
        return
    options.refuse_others(context, context.params.keys() - {"key"}, "only with --to signed or --to hub")
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


def _export_signed(path: Path, place: Path, key: Path | None, *, overwrite: bool, as_json: bool) -> None:
    """Write what a device or a server needs of a bundle as a signed one, and print what stayed behind."""
    from sfumato.artifacts.bundle import Bundle

    if key is None:
        raise SfumatoError("--to signed needs --key FILE: openssl genpkey -algorithm ed25519 -out private.pem")
    source = Bundle.load(path)
    made = _write_public(source, place, None, key, overwrite=overwrite)
    left = sorted(source.files.keys() - made.files.keys())
    if as_json:
        about = {"bundle": str(place), "signed_by": made.signed_by, "files": sorted(made.files), "left_out": left}
        print_json(about)
        return
    typer.echo(f"bundle: {place} ({', '.join(sorted(made.files))})")
    typer.echo(f"  signed by key {made.signed_by}")
    typer.echo(f"  left out: {', '.join(left) or 'nothing'}")


def _write_public(source: Bundle, place: Path, card: str | None, key: Path | None, *, overwrite: bool) -> Bundle:
    from sfumato.artifacts.bundle import MANIFEST
    from sfumato.artifacts.files import whole_folder

    if place.exists() and not (overwrite and (place / MANIFEST).is_file()):
        raise SfumatoError(f"{place} exists; --overwrite replaces it if it is a bundle")
    with whole_folder(place, BundleError) as folder:
        return source.write_public(folder, card=card, key=key)


def _export_to_hub(
    path: Path, place: Path | HubPlace, card: Card, key: Path | None, *, overwrite: bool, as_json: bool
) -> None:
    """Push a bundle with its model card, or write both to a folder, and print what stayed behind."""
    with needs_extra("train"):
        from sfumato.lab.audit.membership import MembershipResult
        from sfumato.lab.report.model_card import model_card
    from sfumato.artifacts.bundle import PUBLIC_FILES, Bundle
    from sfumato.artifacts.files import read_json

    source = Bundle.load(path)
    found = MembershipResult.of(read_json(card.membership), card.membership) if card.membership else None
    repository = place.repository if isinstance(place, HubPlace) else "owner/name"
    with needs_extra("hub"):
        text = model_card(source, repository, licence=card.licence, data_licence=card.data_licence, membership=found)
    if isinstance(place, HubPlace):
        commit = source.push_to_hub(
            place.repository, card=text, revision=place.revision, private=not card.public, key=key
        )
        pushed = str(HubPlace(place.repository, commit))
    else:
        _write_public(source, place, text, key, overwrite=overwrite)
        pushed = str(place)
    left = sorted(source.files.keys() - set(PUBLIC_FILES))
    if as_json:
        print_json({"bundle": pushed, "files": sorted(source.files.keys() - left), "left_out": left})
        return
    typer.echo(f"bundle: {pushed}")
    typer.echo(f"  left out: {', '.join(left) or 'nothing'}")
    if source.kind == "obfuscator" and source.figures.audit is None:
        typer.echo("  note: it is not audited, and its model card says so")


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
