"""`sfumato protect`: obfuscates pictures and writes what would leave the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import expand_pictures, obfuscator_bundle
from sfumato.cli.output import JsonOption, print_json, print_skipped, progress
from sfumato.errors import PictureError, SfumatoError

if TYPE_CHECKING:
    from sfumato.device import Obfuscator


@app.command()
def protect(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Write the exact tensors too, as .npy.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would leave the device.

    Each picture is obfuscated and written as `NAME.obfuscated.png`, so that you can look at it, and with
    `--tensors` as `NAME.obfuscated.npy`, float32 of shape (3, H, W), exactly as it would be sent.
    A picture that cannot be used is reported; the others go on.

    Example: `sfumato protect holiday/ portrait.jpg -o protected --tensors`
    """
    from sfumato.device import Obfuscator

    sources = expand_pictures(pictures)
    obfuscator = Obfuscator(obfuscator_bundle(bundle))
    _make_folder(out)
    done: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    written: set[Path] = set()
    for source in progress(sources, "obfuscating", quiet=as_json):
        try:
            preview = out / f"{source.stem}.obfuscated.png"
            if preview in written:  # not even --force overwrites what this very run has written
                raise PictureError(f"{source}: {preview} was just written for another picture; rename one of them")
            done.append(_protect_one(obfuscator, source, preview, tensors=tensors, force=force))
            written.add(preview)
        except PictureError as error:
            failed.append({"file": str(source), "error": str(error)})
    _report(done, failed, out, as_json=as_json)


def _protect_one(obfuscator: Obfuscator, source: Path, preview: Path, *, tensors: bool, force: bool) -> dict[str, str]:
    import numpy as np

    tensor = preview.with_suffix(".npy")
    targets = [preview, tensor] if tensors else [preview]
    for target in targets:
        if target.exists() and not force:
            raise PictureError(f"{source}: {target} exists; use --force to overwrite it")
    obfuscated = obfuscator.obfuscate(source)
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


def _report(done: list[Any], failed: list[Any], out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"pictures": done, "failed": failed})
    else:
        print_skipped(failed)
        typer.echo(f"{len(done)} of {len(done) + len(failed)} pictures written to {out}")
    if failed:
        raise typer.Exit(1)
