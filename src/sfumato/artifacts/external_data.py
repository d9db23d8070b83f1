"""The second files of ONNX models: weights that lie beside the ONNX file, found without the onnx library.

Source: field numbers of `onnx/onnx.proto` (ONNX 1.19), encoded as protobuf.dev/programming-guides/encoding has it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from sfumato.errors import BundleError

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Of each message, the fields that tensors can lie in, and what they hold."""
_ENTRY, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_FIXED = {1: 8, 3: 0, 4: 0, 5: 4}
"""Bytes by wire type. ONNX has no groups (3, 4); fields in one are read as those of the message around it."""


def external_data(path: Path) -> tuple[str, ...]:
    """Return the names of the files that an ONNX file keeps weights in, relative to its folder, in order.

    What is no ONNX file names none; ONNX Runtime refuses it.

    Raises:
        OSError: it cannot be read.
    """
    found: set[str] = set()
    with path.open("rb") as stream:
        if not stream.read(1):
            return ()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            messages = [("model", 0, len(data))]
            while messages:
                kind, start, end = messages.pop()
                with suppress(IndexError, ValueError):  # no protobuf message
                    if kind == "tensor":
                        found |= set(_locations(data, start, end))
                        continue
                    for number, first, last in _fields(data, start, end):
                        if number in _PARTS[kind] and last is not None:
                            messages.append((_PARTS[kind][number], first, last))
    return tuple(sorted(found))


def external_files(path: Path) -> dict[str, Path]:
    """Return the files that an ONNX file keeps weights in, by their names in it.

    Raises:
        BundleError: one is missing, or lies outside the ONNX file's folder.
        OSError: the ONNX file cannot be read.
    """
    found = {}
    for name in external_data(path):
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
        if absolute or ".." in PurePosixPath(name).parts or "\0" in name:
            raise BundleError(f"{path} keeps weights in {name!r:.80}, which is outside its folder; export it again")
        found[name] = path.parent / name
        if not found[name].is_file():
            raise BundleError(f"{path} keeps weights in {name!r:.80}, which is missing; copy that file, too")
    return found


def _locations(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    entries, location = [], 0
    for number, first, last in _fields(data, start, end):
        if number == _ENTRY and last is not None:
            entries.append({key: data[a:b] for key, a, b in _fields(data, first, last) if b is not None})
        elif number == _DATA_LOCATION and last is None:
            location = first
    if location == _EXTERNAL:
        yield from (os.fsdecode(entry[2]) for entry in entries if entry.get(1) == b"location" and 2 in entry)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the number of each integer with its value and None, and of each message or text with its place."""
    while start < end:
        tag, start = _varint(data, start)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, start = _varint(data, start)
            yield number, value, None
            continue
        if wire == 2:
            size, start = _varint(data, start)
        else:
            size = _FIXED.get(wire, end)  # of another one, more than there is
        if start + size > end:
            raise ValueError("no protobuf message")
        if wire == 2:
            yield number, start, start + size
        start += size


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("no protobuf message")
