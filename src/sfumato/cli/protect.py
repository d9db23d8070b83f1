"""`sfumato protect`: obfuscates pictures and writes what would leave the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import expand_pictures, obfuscator_bundle
from sfumato.cli.output import JsonOption, print_json, print_skipped
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
    from rich.console import Console
    from rich.progress import track

    from sfumato.device import Obfuscator

    sources = expand_pictures(pictures)
    obfuscator = Obfuscator(obfuscator_bundle(bundle))
    _make_folder(out)
    done: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    for source in track(
        sources, "obfuscating", console=Console(stderr=True), transient=True, disable=as_json or len(sources) < 10
    ):
        try:
            # What this run has written is never overwritten, not even with --force.
            keep = {entry["preview"] for entry in done}
            done.append(_protect_one(obfuscator, source, out, tensors=tensors, force=force, keep=keep))
        except PictureError as error:
            failed.append({"file": str(source), "error": str(error)})
    _report(done, failed, out, as_json=as_json)


def _protect_one(
    obfuscator: Obfuscator, source: Path, out: Path, *, tensors: bool, force: bool, keep: set[str]
) -> dict[str, str]:
    import numpy as np

    preview, tensor = (out / f"{source.stem}.obfuscated.{ending}" for ending in ("png", "npy"))
    targets = [preview, tensor] if tensors else [preview]
    if str(preview) in keep:
        raise PictureError(f"{source}: another picture was written as {preview} already; rename one of them")
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
