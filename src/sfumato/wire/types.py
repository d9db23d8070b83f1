"""The messages of the Open Inference Protocol v2, as plain values.

Source: https://github.com/kserve/open-inference-protocol, "rest/inference_rest.yaml", and Triton's
"extension_binary_data" for `binary_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import WireError

Parameter = str | int | float | bool

# The bytes on the wire are little-endian, whatever the machine.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_DATATYPES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a numpy dtype, such as "FP32" for float32.

    Raises:
        WireError: the protocol, or this codec, has no name for it (strings, complex numbers, objects).
    """
    try:
        return _DATATYPES[dtype.kind, dtype.itemsize]
    except KeyError:
        raise WireError(f"arrays of {dtype} cannot be sent; expected one of {', '.join(DTYPES)}") from None


@dataclass(frozen=True)
class TensorSpec:
    """The metadata of a model's input or output.

    Attributes:
        name: the tensor's name.
        datatype: the protocol's name of its type; may be one that this codec cannot carry, such as "BYTES".
        shape: its dimensions; -1 where any size will do.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            size in (-1, given) for size, given in zip(self.shape, shape, strict=True)
        )

    def takes_rows(self, row: tuple[int, ...]) -> bool:
        """Return whether a batch of rows of this shape fits, whatever the first axis says."""
        return self.takes((*self.shape[:1], *row))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named array. Its representation never shows the values.

    Attributes:
        name: the tensor's name.
        array: the values, any shape, of a dtype in `DTYPES`. Decoded ones are read-only views of the message.
    """

    name: str
    array: NDArray[Any] = field(repr=False)

    def __post_init__(self) -> None:
        datatype_of(self.array.dtype)

    @property
    def datatype(self) -> str:
        """The protocol's name of the array's dtype."""
        return datatype_of(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's dimensions."""
        return self.array.shape

    def __eq__(self, other: object) -> bool:
        """Same name, type, shape and bits (so that NaN equals itself)."""
        if not isinstance(other, Tensor):
            return NotImplemented
        return (
            self.name == other.name
            and self.array.dtype == other.array.dtype
            and self.array.shape == other.array.shape
            and self.array.tobytes() == other.array.tobytes()
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client asks for; `binary` None leaves its form to the request's `binary_data_output`."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True)
class InferRequest:
    """A request to a model.

    Attributes:
        inputs: the tensors; names are unique.
        outputs: the outputs asked for; none means all.
        id: the client's mark, which the response repeats.
        parameters: scalars by name.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def wants_binary(self, output_name: str) -> bool:
        """Return whether this output should come back as bytes; by default as JSON."""
        for output in self.outputs:
            if output.name == output_name and output.binary is not None:
                return output.binary
        return self.parameters.get("binary_data_output") is True


@dataclass(frozen=True)
class InferResponse:
    """A model's response; version and id may be ""."""

    model_name: str
    outputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model.

    Attributes:
        name: the model's name.
        versions: the versions served.
        platform: the framework, such as "onnxruntime_onnx".
        inputs: its inputs; some servers leave this empty.
        outputs: its outputs; some servers leave this empty.
        parameters: scalars by name; sfumato's server states the `fingerprint` here.
    """

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
