"""Obfuscate many images into a folder, in several processes, so that an interruption loses next to nothing.

Each image is obfuscated by itself, as it would be for sending, and its files appear only once they are complete.
Memory holds a few groups of names and one image for each process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from sfumato.artifacts.files import exclusive, whole_file
from sfumato.artifacts.signals import after_parent
from sfumato.device.image_folders import Found, Share, in_groups
from sfumato.device.obfuscator import ObfuscatedImage, Obfuscator
from sfumato.errors import BundleError, ImageError, SfumatoError

GROUP = 32
"""Images that a process gets at once."""
_CLOCK_STEP_S = 0.02
_GROUPS_AHEAD = 2
"""For each process: one in progress, and one that waits, so that no process is idle."""

Existing = Literal["refuse", "replace", "keep"]


@dataclass(frozen=True)
class Outcome:
    """The result for one image.

    Attributes:
        file: the image's path.
        state: "written"; "exists": its files existed and were kept; "on-device": the on-device prediction is final,
            and nothing was written; "failed": nothing was written.
        preview: the PNG file, if there is one.
        tensor: the `.npy` file, if there is one.
        label: the on-device prediction, if it is final.
        probability: its probability, in [0, 1].
        error: what was wrong, of one that failed.
    """

    file: str
    state: Literal["written", "exists", "on-device", "failed"]
    preview: str | None = None
    tensor: str | None = None
    label: str | None = None
    probability: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Protecting:
    """The settings of the conversion to files, the same in every process; see `into`."""

    bundle: str
    out: str
    tensors: bool
    gate: bool
    existing: Existing
    since_ns: int  # files in `out` that are no older were written by this run
    share: Share | None = None
    allow_recognisable: bool = False

    @classmethod
    def into(
        cls,
        out: Path,
        bundle: Path,
        *,
        tensors: bool,
        gate: bool,
        existing: Existing,
        share: Share | None = None,
        allow_recognisable: bool = False,
    ) -> Protecting:
        """Make the folder, and note the time by its disk's clock.

        Args:
            out: the folder that is written to, with the tree below the folders given.
            bundle: the obfuscator bundle's folder.
            tensors: whether to write the tensors, too.
            gate: whether images may be handled on-device.
            existing: what to do if an image's files exist already.
            share: the part of the images that this run takes; others may write to the folder meanwhile.
            allow_recognisable: accept a baseline whose payloads show the image; see `Obfuscator`.

        Raises:
            SfumatoError: the folder cannot be made or written to.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            time.sleep(_CLOCK_STEP_S)  # what is there already is older then, however coarse the disk's clock
            with tempfile.NamedTemporaryFile(dir=out) as probe:
                since_ns = os.fstat(probe.fileno()).st_mtime_ns
        except OSError as error:
            raise SfumatoError(f"cannot write to the folder {out}: {error.strerror}") from error
        return cls(str(bundle), str(out), tensors, gate, existing, since_ns, share, allow_recognisable)

    def obfuscator(self) -> Obfuscator:
        """Open the bundle.

        Raises:
            BundleError: it cannot be used.
        """
        return Obfuscator(self.bundle, allow_recognisable=self.allow_recognisable)

    def targets(self, found: Found) -> list[Path]:
        """Return the files that an image becomes, the preview first."""
        preview = Path(self.out, found.place).with_suffix(".obfuscated.png")
        return [preview, preview.with_suffix(".npy")] if self.tensors else [preview]


def protect_images(
    images: Iterable[Found], how: Protecting, *, workers: int = 1
) -> Generator[list[Outcome], None, None]:
    """Obfuscate images and write them, a group at a time and in order.

    Closing the iterator stops early: what the processes have begun is finished first.

    Args:
        images: any number; they are taken as they are needed.
        how: what is written, and where to.
        workers: processes. With 1, or if there is one group at most, everything is done in this one.

    Raises:
        BundleError: the bundle is missing, damaged, or hides no image of a group.
        SfumatoError: a file cannot be written, a process died, or another run writes the same share of images there.
        ImageError: a folder cannot be read.
    """
    part = "" if how.share is None else f"-{how.share.number}-of-{how.share.of}"
    with exclusive(Path(how.out), SfumatoError, part=part):
        groups = in_groups(images, GROUP)
        first = next(groups, [])
        second = next(groups, None) if workers > 1 else None
        if second is not None:
            yield from _in_processes(chain([first, second], groups), how, workers)
            return
        obfuscator = how.obfuscator()
        for group in chain([first], groups):
            yield _protect_group(group, how, obfuscator)


def _in_processes(groups: Iterator[list[Found]], how: Protecting, workers: int) -> Iterator[list[Outcome]]:
    how.obfuscator()  # a bundle that cannot be used fails here, not in a process that dies of it
    pending: deque[Future[list[Outcome]]] = deque()
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(how,)
    )
    try:
        for group in groups:
            with _signals_held():
                pending.append(pool.submit(_protect_here, group))
            if len(pending) >= _GROUPS_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise SfumatoError("a process died, perhaps for want of memory; with --resume the rest is done") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that never see Ctrl-C: stopping is up to this one, which gets it a bit later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the processes -----------------------------------------------------------------------------

_here: tuple[Protecting, Obfuscator] | None = None


def _begin(how: Protecting) -> None:
    global _here
    after_parent(lambda: os._exit(1))  # it would wait for its next group forever
    _here = how, how.obfuscator()


def _protect_here(group: list[Found]) -> list[Outcome]:
    assert _here is not None
    return _protect_group(group, *_here)


def _protect_group(group: list[Found], how: Protecting, obfuscator: Obfuscator) -> list[Outcome]:
    outcomes: list[Outcome] = []
    unhidden: list[BundleError] = []
    for found in group:
        try:
            outcomes.append(_protect_one(found, how, obfuscator))
        except (ImageError, BundleError) as error:
            outcomes.append(Outcome(found.path, "failed", error=str(error)))
            unhidden += [error] if isinstance(error, BundleError) else []
    if unhidden and len(unhidden) == len(group):
        raise unhidden[0]  # it is the bundle then, and not an image
    return outcomes


def _protect_one(found: Found, how: Protecting, obfuscator: Obfuscator) -> Outcome:
    targets = how.targets(found)
    preview, tensor = str(targets[0]), str(targets[1]) if how.tensors else None
    if _all_there(targets, found, how):
        return Outcome(found.path, "exists", preview, tensor)
    (decision,) = obfuscator.decide_batch([found.path], gate=how.gate)
    if decision.obfuscated is None:
        probability, label = max(zip(decision.probabilities or (), obfuscator.bundle.labels, strict=True))
        return Outcome(found.path, "on-device", label=label, probability=probability)
    _write(decision.obfuscated, targets)
    return Outcome(found.path, "written", preview, tensor)


def _all_there(targets: list[Path], found: Found, how: Protecting) -> bool:
    """Return whether an image's files exist and are to be kept; an `ImageError` if they may not be replaced either."""
    there = {target: target.stat() for target in targets if target.exists()}
    for target, status in there.items():
        if status.st_mtime_ns >= how.since_ns:  # not even --overwrite replaces what this very run has written
            raise ImageError(f"{found.path}: {target} was just written for another image; rename one of them")
        if how.existing == "refuse":
            raise ImageError(f"{found.path}: {target} exists; use --overwrite to replace it, or --resume to keep it")
    return how.existing == "keep" and len(there) == len(targets) and all(status.st_size for status in there.values())


def _write(obfuscated: ObfuscatedImage, targets: list[Path]) -> None:
    preview, *tensor = targets
    try:
        preview.parent.mkdir(parents=True, exist_ok=True)
        for file in tensor:
            with whole_file(file) as partial, partial.open("wb") as stream:
                np.save(stream, obfuscated.tensor)
        with whole_file(preview) as partial:
            obfuscated.preview().save(partial, "PNG")
    except OSError as error:
        raise SfumatoError(f"cannot write {preview}: {error.strerror or error}") from error
