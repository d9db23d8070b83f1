"""One tensor, to and from its JSON numbers or its bytes."""

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

BINARY_SIZE = "binary_data_size"
_PYTHON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class Reader:
    """Reads the binary part of a message, if there is one, in order and never beyond its end."""

    def __init__(self, data: memoryview | None) -> None:
        self._data = memoryview(b"") if data is None else data
        self.has_binary = data is not None
        self._offset = 0

    def take(self, size: Any, what: str) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            WireError: no binary part, a size that is not a count, or fewer bytes left.
        """
        if not self.has_binary:
            raise WireError(f"{what} announces binary data, but the message has no Inference-Header-Content-Length")
        if type(size) is not int or size < 0:
            raise WireError(f"{BINARY_SIZE} of {what} must be an integer that is not negative")
        left = len(self._data) - self._offset
        if size > left:
            raise WireError(f"{what} announces {size} bytes of binary data; {left} are left")
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def finish(self) -> None:
        """Check that nothing is left over.

        Raises:
            WireError: bytes that no tensor announced.
        """
        if self._offset != len(self._data):
            raise WireError(f"{len(self._data) - self._offset} bytes follow the last tensor; none were expected")


def encode(tensor: Tensor, *, binary: bool) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Return a tensor's JSON entry and, if it is sent as bytes, its array in wire order.

    Raises:
        WireError: NaN or infinite values, which JSON cannot express.
    """
    entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if binary:
        array = np.asarray(tensor.array, dtype=DTYPES[tensor.datatype], order="C")
        entry["parameters"] = {BINARY_SIZE: array.nbytes}
        return entry, array
    if tensor.array.dtype.kind == "f" and not np.isfinite(tensor.array).all():
        raise WireError(
            f"tensor {tensor.name!r} has NaN or infinite values, which JSON cannot express; send it as binary"
        )
    entry["data"] = tensor.array.ravel().tolist()
    return entry, None


@dataclass(frozen=True, slots=True)
class Announced:
    """A tensor as its JSON entry announces it.

    Attributes:
        name: its name.
        kind: "input" or "output", for messages.
        dtype: of its numbers.
        shape: its dimensions.
        binary: whether its numbers follow as bytes.
        content: how many bytes, not checked yet; or the numbers, as they were parsed.
    """

    name: str
    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    binary: bool
    content: Any

    def read(self, reader: Reader) -> Tensor:
        """Build the tensor, from the next bytes if it announces them.

        Raises:
            WireError: its numbers are not what it announces.
        """
        what = f"{self.kind} {self.name!r}"
        if not self.binary:
            return Tensor(self.name, _from_json(self.content, self.dtype, self.shape, what))
        return Tensor(self.name, _from_bytes(reader.take(self.content, what), self.dtype, self.shape, what))


def announced(raw: Any, kind: str) -> Announced:
    """Check a tensor's parsed JSON entry; `kind` is "input" or "output", for messages.

    Raises:
        WireError: anything about it is not as the protocol says.
    """
    entry = fields.object_of(raw, f"an {kind}")
    name = fields.name(entry.get("name"), f"the name of an {kind}")
    what = f"{kind} {name!r}"
    dtype = _dtype(entry.get("datatype"), what)
    shape = fields.shape(entry.get("shape"), what)
    extras = fields.parameters(entry.get("parameters"), what)
    if "shared_memory_region" in extras:
        raise WireError(f"{what} refers to shared memory, which is not supported; send its data")
    binary = BINARY_SIZE in extras
    if ("data" in entry) == binary:
        raise WireError(f"{what} needs either 'data' or the parameter '{BINARY_SIZE}'")
    return Announced(name, kind, dtype, shape, binary, extras[BINARY_SIZE] if binary else entry["data"])


def _dtype(raw: Any, what: str) -> np.dtype[Any]:
    dtype = DTYPES.get(raw) if isinstance(raw, str) else None
    if dtype is None:
        extra = " (BYTES tensors are not supported)" if raw == "BYTES" else ""
        raise WireError(f"the datatype of {what} must be one of {', '.join(DTYPES)}{extra}")
    return dtype


def _from_bytes(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(f"{what} of shape {list(shape)} needs {expected} bytes, got {len(data)}")
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise WireError(f"{what} is BOOL; its bytes must be 0 or 1")
    return array


def _from_json(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
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


def _flatten(data: Any, shape: tuple[int, ...], what: str) -> list[Any]:
    """Return the values in row-major order, from a flat list or one that is nested exactly as `shape` says."""
    if not isinstance(data, list):
        raise WireError(f"the data of {what} must be a list")
    flat: list[Any] = data
    nested = bool(data) and isinstance(data[0], list)
    if nested:
        # A whole level is checked before it is joined, so that ragged rows cannot add up to the right count.
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in flat):
                raise WireError(f"the data of {what} is not nested as its shape {list(shape)} says")
            flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(shape) or (nested and len(data) != shape[0]):
        raise WireError(f"the data of {what} does not have the {math.prod(shape)} values of its shape {list(shape)}")
    return flat
