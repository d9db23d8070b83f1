"""Tensors of a message, to and from their JSON entries and the bytes that follow the JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import WireError
from sfumato.wire import fields
from sfumato.wire.types import DTYPES, Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE = "binary_data_size"
_PYTHON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class Reader:
    """Reads the binary part of a message, if there is one, in order and never beyond its end."""

    def __init__(self, data: memoryview | None) -> None:
        self._data = memoryview(b"") if data is None else data
        self.has_binary = data is not None
        self._offset = 0

    def take(self, size: object, what: str) -> memoryview:
        """Return the next bytes, as many as an entry announces; `what` is what messages call it."""
        if not self.has_binary:
            raise WireError(f"{what} announces binary data, but the message has no {HEADER_LENGTH}")
        if type(size) is not int or size < 0:
            raise WireError(f"{BINARY_SIZE} of {what} must be an integer that is not negative")
        left = len(self._data) - self._offset
        if size > left:
            raise WireError(f"{what} announces {size} bytes of binary data; {left} are left")
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def finish(self) -> None:
        """Refuse bytes after the last tensor."""
        if self._offset != len(self._data):
            raise WireError(f"{len(self._data) - self._offset} bytes follow the last tensor; none were expected")


@dataclass(frozen=True, slots=True)
class Announced:
    """A tensor as its JSON entry announces it.

    `content` is its size in bytes, not checked yet, if its numbers follow as bytes; else the numbers, as they were
    parsed. `what` is what messages call it.
    """

    name: str
    what: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    binary: bool
    content: object

    def read(self, reader: Reader) -> Tensor:
        """Build the tensor, from the next bytes if it announces them."""
        if not self.binary:
            return Tensor(self.name, _from_json(self.content, self.dtype, self.shape, self.what))
        data = reader.take(self.content, self.what)
        return Tensor(self.name, _from_bytes(data, self.dtype, self.shape, self.what))


def announced(raw: object, kind: str) -> Announced:
    """Check a tensor's JSON entry; `kind` is "input" or "output"."""
    entry = fields.object_of(raw, f"an {kind}")
    name = fields.name(entry.get("name"), f"the name of an {kind}")
    what = f"{kind} {name!r}"
    datatype = entry.get("datatype")
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        extra = " (BYTES tensors are not supported)" if datatype == "BYTES" else ""
        raise WireError(f"the datatype of {what} must be one of {', '.join(DTYPES)}{extra}")
    shape = fields.shape(entry.get("shape"), what)
    extras = fields.parameters(entry.get("parameters"), what)
    if "shared_memory_region" in extras:
        raise WireError(f"{what} refers to shared memory, which is not supported; send its data")
    binary = BINARY_SIZE in extras
    if ("data" in entry) == binary:
        raise WireError(f"{what} needs either 'data' or the parameter '{BINARY_SIZE}'")
    return Announced(name, what, dtype, shape, binary, extras[BINARY_SIZE] if binary else entry["data"])


def tensor_entry(tensor: Tensor, *, binary: bool) -> tuple[dict[str, object], NDArray[Any] | None]:
    """Return a tensor's JSON entry and, if it is sent as bytes, its array in wire order."""
    if binary:
        return binary_entry(tensor.name, tensor.datatype, tensor.shape), in_wire_order(tensor)
    entry: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if tensor.array.dtype.kind == "f" and not np.isfinite(tensor.array).all():
        raise WireError(
            f"tensor {tensor.name!r} has NaN or infinite values, which JSON cannot express; send it as binary"
        )
    entry["data"] = tensor.array.ravel().tolist()
    return entry, None


def binary_entry(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, object]:
    """Return the JSON entry of a tensor that is sent as bytes."""
    size = math.prod(shape) * DTYPES[datatype].itemsize
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {BINARY_SIZE: size}}


def in_wire_order(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's numbers as they are sent: in rows, little-endian."""
    return np.asarray(tensor.array, dtype=DTYPES[tensor.datatype], order="C")


def _from_bytes(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(f"{what} of shape {list(shape)} needs {expected} bytes, got {len(data)}")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise WireError(f"{what} is BOOL; its bytes must be 0 or 1")
    return array


def _from_json(data: object, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    flat = _flatten(data, shape, what)
    if not set(map(type, flat)) <= _PYTHON_TYPES[dtype.kind]:
        raise WireError(f"the data of {what} must be {'booleans' if dtype.kind == 'b' else 'numbers'} that fit {dtype}")
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise WireError(f"the data of {what} must lie within {limits.min} and {limits.max}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise WireError(f"the data of {what} must be numbers that fit {dtype}") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise WireError(f"the data of {what} has numbers too large for {dtype}")
    return array


def _flatten(data: object, shape: tuple[int, ...], what: str) -> list[Any]:
    """Return the values in row-major order, from a flat list or one that is nested exactly as `shape` says."""
    if not isinstance(data, list):
        raise WireError(f"the data of {what} must be a list")
    flat = data
    nested = bool(data) and isinstance(data[0], list)
    if nested:
        # A whole level is checked before it is joined, so that ragged rows cannot add up to the right count.
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in flat):
                raise WireError(f"the data of {what} is not nested as its shape {list(shape)} says")
            flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(shape) or (nested and (not shape or len(data) != shape[0])):
        raise WireError(f"the data of {what} does not have the {math.prod(shape)} values of its shape {list(shape)}")
    return flat
