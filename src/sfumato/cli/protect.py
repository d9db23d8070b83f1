"""`sfumato protect`: obfuscates pictures and writes what would leave the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import AlwaysSendOption, expand_pictures, obfuscator_bundle
from sfumato.cli.output import JsonOption, print_json, print_skipped, progress
from sfumato.errors import PictureError, SfumatoError

if TYPE_CHECKING:
    from sfumato.device import Decision, ObfuscatedPicture


@app.command()
def protect(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Write the exact tensors too, as .npy.")] = False,
    always_send: AlwaysSendOption = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would leave the device.

    Each picture is obfuscated and written as `NAME.obfuscated.png`, so that you can look at it, and with
    `--tensors` as `NAME.obfuscated.npy`, float32 of shape (3, H, W), exactly as it would be sent.
    If the bundle has a gate, a picture that the device is sure of stays on it: it is named with the device's answer,
    and nothing is written for it. A picture that cannot be used is reported; the others go on.

    Example: `sfumato protect holiday/ portrait.jpg -o protected --tensors`
    """
    from sfumato.device import Obfuscator

    sources = expand_pictures(pictures)
    obfuscator = Obfuscator(obfuscator_bundle(bundle))
    _make_folder(out)
    done: list[dict[str, str]] = []
    kept: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    written: set[Path] = set()
    for source in progress(sources, "obfuscating", quiet=as_json):
        try:
            (decision,) = obfuscator.decide_batch([source], gate=not always_send)
            if decision.obfuscated is None:
                kept.append(_kept(source, decision, obfuscator.bundle.labels))
                continue
            preview = out / f"{source.stem}.obfuscated.png"
            if preview in written:  # not even --force overwrites what this very run has written
                raise PictureError(f"{source}: {preview} was just written for another picture; rename one of them")
            done.append(_write_one(decision.obfuscated, source, preview, tensors=tensors, force=force))
            written.add(preview)
        except PictureError as error:
            failed.append({"file": str(source), "error": str(error)})
    _report(done, kept, failed, out, as_json=as_json)


def _kept(source: Path, decision: Decision, labels: tuple[str, ...]) -> dict[str, Any]:
    probability, label = max(zip(decision.probabilities or (), labels, strict=True), key=lambda pair: pair[0])
    return {"file": str(source), "label": label, "probability": probability}


def _write_one(
    obfuscated: ObfuscatedPicture, source: Path, preview: Path, *, tensors: bool, force: bool
) -> dict[str, str]:
    import numpy as np

    tensor = preview.with_suffix(".npy")
    targets = [preview, tensor] if tensors else [preview]
    for target in targets:
        if target.exists() and not force:
            raise PictureError(f"{source}: {target} exists; use --force to overwrite it")
    try:
        obfuscated.preview().save(preview)
        if tensors:
            np.save(tensor, obfuscated.tensor)
    except OSError as error:
        raise SfumatoError(f"cannot write {preview}: {error.strerror or error}") from error
    entry = {"file": str(source), "preview": str(preview)}
    return {**entry, "tensor": str(tensor)} if tensors else entry


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SfumatoError(f"cannot make the folder {out}: {error.strerror}") from error


def _report(done: list[Any], kept: list[Any], failed: list[Any], out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"pictures": done, "kept": kept, "failed": failed})
    else:
        print_skipped(failed)
        for entry in kept:
            typer.echo(f"stays on the device: {entry['file']} ({entry['label']}, {100 * entry['probability']:.0f} %)")
        said = f"{len(done)} of {len(done) + len(kept) + len(failed)} pictures written to {out}"
        typer.echo(said + (f"; {len(kept)} stay on the device" if kept else ""))
    if failed:
        raise typer.Exit(1)
