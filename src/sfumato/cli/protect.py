"""`sfumato protect`."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from sfumato.artifacts.signals import interruptible
from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.options import flag, option
from sfumato.cli.output import percent, print_skipped
from sfumato.cli.progress import bars
from sfumato.device.image_folders import IMAGE_SUFFIXES, Share, find_images
from sfumato.errors import ImageError, Interrupted, SfumatoError

if TYPE_CHECKING:
    from sfumato.device.protect import Outcome

_NAMED = 100
"""Images handled on-device that are named, at most; --json names all."""


@command()
def protect(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders with all images below.")],
    out: Annotated[Path, option("DIR", "Folder to write to.", "--out", "-o")],
    bundle: options.Obfuscator = None,
    tensors: Annotated[bool, flag("--tensors", "Write the exact tensors too, as .npy.")] = False,
    resume: options.Resume = False,
    overwrite: Annotated[bool, flag("--overwrite", "Replace files that exist.")] = False,
    always_send: options.AlwaysSend = False,
    allow_recognisable: options.AllowRecognisable = False,
    workers: Annotated[int | None, option("N", "Processes. Default: one for each core.", min=1)] = None,
    shard: Annotated[str | None, option("I/N", "Part of the images, 2/4 on the second of 4 machines.")] = None,
    as_json: options.Json = False,
) -> None:
    """Obfuscate images, and write the payloads that would be sent.

    Writes `NAME.obfuscated.png` for viewing, and with `--tensors` `NAME.obfuscated.npy`, float32 of shape (3, H, W), as
    it would be sent. An image that the gate handles on-device is named with its prediction; nothing is written for it.
    After Ctrl-C, the same command with `--resume` makes the missing files.

    Example: `sfumato protect holiday/ portrait.jpg -o protected --tensors`
    """
    from sfumato.device.protect import Protecting, protect_images

    if overwrite and resume:
        raise SfumatoError("--overwrite replaces existing files, --resume keeps them; choose one of them")
    part = _shard(shard)
    how = Protecting.into(
        out,
        options.obfuscator_path(bundle),
        tensors=tensors,
        gate=not always_send,
        allow_recognisable=allow_recognisable,
        existing="replace" if overwrite else "keep" if resume else "refuse",
        share=part,
    )
    total = sum(1 for _ in find_images(images, leave_out=out, share=part))
    if not total:
        raise ImageError(_nothing(images, part))
    found = find_images(images, leave_out=out, share=part)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        report = _Report(out, file)
        with (
            interruptible() as received,
            bars(quiet=as_json) as shown,
            closing(protect_images(found, how, workers=workers or _cores())) as groups,
        ):
            began = time.monotonic()
            for outcomes in groups:
                for outcome in outcomes:
                    report.add(outcome, quiet=as_json)
                done = sum(report.counts.values())
                shown.progress("obfuscating", done, total, f"{done / (time.monotonic() - began):,.0f} images/s")
                if received:
                    raise Interrupted(f"{report.summary()}; the same command with --resume makes the others")
        report.print(as_json=as_json)
        if report.counts["failed"]:
            raise typer.Exit(1)


class _Report:
    """Counts the outcomes, and keeps their details on disk: there may be millions of images."""

    def __init__(self, out: Path, file: IO[str]) -> None:
        self._out, self._file = out, file
        self.counts = dict.fromkeys(("written", "exists", "on-device", "failed"), 0)

    def add(self, outcome: Outcome, *, quiet: bool) -> None:
        entry = {name: value for name, value in vars(outcome).items() if name != "state" and value is not None}
        self.counts[outcome.state] += 1
        self._file.write(f"{outcome.state} {json.dumps(entry)}\n")
        if outcome.state == "failed" and not quiet:
            print_skipped([entry])

    def summary(self) -> str:
        counts = self.counts
        return (
            f"{counts['written']} of {sum(counts.values())} images written to {self._out}"
            + (f"; {counts['exists']} existed" if counts["exists"] else "")
            + (f"; {counts['on-device']} handled on-device" if counts["on-device"] else "")
        )

    def print(self, *, as_json: bool) -> None:
        if as_json:
            names = {"images": "written", "existing": "exists", "on_device": "on-device", "failed": "failed"}
            for index, (name, state) in enumerate(names.items()):
                typer.echo(f"{', ' if index else '{'}{json.dumps(name)}: [", nl=False)
                for number, line in enumerate(self._lines(state)):
                    typer.echo(f"{', ' if number else ''}{line}", nl=False)
                typer.echo("]", nl=False)
            typer.echo("}")
            return
        for number, line in enumerate(self._lines("on-device")):
            if number == _NAMED:
                typer.echo(f"and {self.counts['on-device'] - _NAMED} more handled on-device; --json names them all")
                break
            entry = json.loads(line)
            typer.echo(f"handled on-device: {entry['file']} ({entry['label']}, {percent(entry['probability'], 0)})")
        typer.echo(self.summary())

    def _lines(self, state: str) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            if line.startswith(f"{state} "):
                yield line[len(state) + 1 :].strip()


def _shard(text: str | None) -> Share | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise SfumatoError(f"--shard takes one of several, such as 2/4; got {text!r}")
    return Share(int(found[1]), int(found[2]))


def _nothing(images: list[Path], shard: Share | None) -> str:
    if shard is not None:
        return f"there is no image in shard {shard.number}/{shard.of}"
    return f"the folder {', '.join(map(str, images))} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
