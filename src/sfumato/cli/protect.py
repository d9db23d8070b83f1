"""`sfumato protect`: obfuscates images and writes what would leave the device."""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from sfumato.artifacts.signals import interruptible
from sfumato.cli.app import app
from sfumato.cli.inputs import AlwaysSendOption, obfuscator_bundle
from sfumato.cli.output import JsonOption, counted, print_skipped
from sfumato.device.image_folders import IMAGE_SUFFIXES, Share, find_images
from sfumato.errors import ImageError, Interrupted, SfumatoError

if TYPE_CHECKING:
    from sfumato.device.protect import Outcome

_NAMED = 100
"""Images that stay on the device and are named, at most; --json names all."""


@app.command()
def protect(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, or folders, with all that lie below.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(help="Obfuscator bundle. Default: the shipped one.", show_default=False)
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Write the exact tensors too, as .npy.")] = False,
    always_send: AlwaysSendOption = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep files that exist, and make the others.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one for each core.", show_default=False)
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(help="Do this part of the images only, such as 2/4 on the second of four machines."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would leave the device.

    Each image is obfuscated and written as `NAME.obfuscated.png`, so that you can look at it, and with
    `--tensors` as `NAME.obfuscated.npy`, float32 of shape (3, H, W), exactly as it would be sent. Folders keep their
    tree.

    If the bundle has a gate, an image that the device is sure of stays on it: it is named with the device's answer,
    and nothing is written for it. An image that cannot be used is reported; the others go on.

    There may be millions: files appear only when they are complete, so after Ctrl-C, or worse, the same command with
    `--resume` makes what is missing. What the gate kept is decided again then.

    Example: `sfumato protect holiday/ portrait.jpg -o protected --tensors`
    """
    from sfumato.device.protect import Protecting, protect_images

    if force and resume:
        raise SfumatoError("--force overwrites what exists, --resume keeps it; give one of them")
    how = Protecting.into(
        out,
        obfuscator_bundle(bundle),
        tensors=tensors,
        gate=not always_send,
        existing="replace" if force else "keep" if resume else "refuse",
    )
    part = _share(share)
    total = sum(1 for _ in find_images(images, leave_out=out, share=part))
    if not total:
        raise ImageError(_nothing(images, part))
    found = find_images(images, leave_out=out, share=part)
    with _Report(out) as report:
        with (
            interruptible() as received,
            counted(total, "obfuscating", quiet=as_json) as advance,
            closing(protect_images(found, how, workers=workers or _cores())) as groups,
        ):
            for outcomes in groups:
                for outcome in outcomes:
                    report.add(outcome, quiet=as_json)
                advance(len(outcomes))
                if received:
                    raise Interrupted(f"{report.said()}; the same command with --resume makes the others")
        report.print(as_json=as_json)
        if report.counts["failed"]:
            raise typer.Exit(1)


class _Report:
    """Counts what became of the images, and keeps the details on disk: there may be millions."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._open = ExitStack()
        self._lists: dict[str, IO[str]] = {}
        self.counts = dict.fromkeys(("written", "exists", "on-device", "failed"), 0)

    def __enter__(self) -> _Report:
        for state in self.counts:
            self._lists[state] = self._open.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, outcome: Outcome, *, quiet: bool) -> None:
        """Takes note of an image, and tells at once what is wrong with it."""
        entry = {name: value for name, value in vars(outcome).items() if name != "state" and value is not None}
        self.counts[outcome.state] += 1
        self._lists[outcome.state].write(json.dumps(entry) + "\n")
        if outcome.state == "failed" and not quiet:
            print_skipped([entry])

    def said(self) -> str:
        """How many of how many, in words."""
        counts = self.counts
        return (
            f"{counts['written']} of {sum(counts.values())} images written to {self._out}"
            + (f"; {counts['exists']} were there" if counts["exists"] else "")
            + (f"; {counts['on-device']} stay on the device" if counts["on-device"] else "")
        )

    def print(self, *, as_json: bool) -> None:
        """Everything as one JSON object, or what is worth reading."""
        if as_json:
            names = {"images": "written", "there": "exists", "kept": "on-device", "failed": "failed"}
            for index, (name, state) in enumerate(names.items()):
                typer.echo(f"{', ' if index else '{'}{json.dumps(name)}: [", nl=False)
                for number, line in enumerate(self._lines(state)):
                    typer.echo(f"{', ' if number else ''}{line}", nl=False)
                typer.echo("]", nl=False)
            typer.echo("}")
            return
        for number, line in enumerate(self._lines("on-device")):
            if number == _NAMED:
                typer.echo(f"and {self.counts['on-device'] - _NAMED} more stay; --json names them all")
                break
            entry: dict[str, Any] = json.loads(line)
            typer.echo(f"stays on the device: {entry['file']} ({entry['label']}, {100 * entry['probability']:.0f} %)")
        typer.echo(self.said())

    def _lines(self, state: str) -> Any:
        self._lists[state].seek(0)
        return map(str.strip, self._lists[state])


def _share(text: str | None) -> Share | None:
    if text is None:
        return None
    given = re.fullmatch(r"(\d+)/(\d+)", text)
    if given is None:
        raise SfumatoError(f"--share takes one of several, such as 2/4; got {text!r}")
    return Share(int(given[1]), int(given[2]))


def _nothing(images: list[Path], share: Share | None) -> str:
    if share is not None:
        return f"there is no image in share {share.number}/{share.of}"
    return f"the folder {', '.join(map(str, images))} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
