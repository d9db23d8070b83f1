"""Whole messages, to and from bytes.

A body is either JSON alone, or JSON followed by the bytes of those tensors that announce a
`binary_data_size`; the HTTP header `Inference-Header-Content-Length` then says where the JSON ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from sfumato.errors import WireError
from sfumato.wire import fields
from sfumato.wire.tensors import (
    HEADER_LENGTH,
    Announced,
    Reader,
    announced,
    binary_entry,
    in_wire_order,
    tensor_entry,
)
from sfumato.wire.types import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    RequestedOutput,
    Tensor,
    TensorSpec,
)

_MAX_LENGTH_DIGITS = 12
_KEPT_HEADS, _KEPT_HEAD_BYTES = 256, 4096
_LEADING_ID = re.compile(rb'\{"id":"([A-Za-z0-9_.-]{1,64})",(?=")')
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # `json.dumps` would make one on every call


@dataclass(frozen=True)
class Encoded:
    """A body ready to be sent, and how many of its bytes are JSON if a binary part follows, else None."""

    body: bytes
    header_length: int | None

    def headers(self) -> dict[str, str]:
        """The HTTP headers that describe the body."""
        if self.header_length is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(self.header_length)}


# --- requests -------------------------------------------------------------------------------------


def encode_request(request: InferRequest, *, binary: bool = True) -> Encoded:
    """Encode a request; with `binary`, inputs are sent as bytes, of which JSON takes about five times as many.

    Raises:
        WireError: a value that JSON cannot express.
    """
    entries = [tensor_entry(tensor, binary=binary) for tensor in request.inputs]
    header: dict[str, object] = {"id": request.id} if request.id else {}
    if request.parameters:
        header["parameters"] = dict(request.parameters)
    header["inputs"] = [entry for entry, _ in entries]
    if request.outputs:
        header["outputs"] = [
            {"name": output.name}
            if output.binary is None
            else {"name": output.name, "parameters": {"binary_data": output.binary}}
            for output in request.outputs
        ]
    return _encode(header, [array for _, array in entries])


def decode_request(body: bytes, header_length: int | str | None = None) -> InferRequest:
    """Decode a request from an untrusted sender.

    Args:
        body: all bytes of the HTTP body.
        header_length: the value of `Inference-Header-Content-Length`, as received; None if it was absent.

    Returns:
        The request. Its binary tensors are read-only views of `body`.

    Raises:
        WireError: anything about it is not as the protocol says.
    """
    text, reader = _split(body, header_length)
    given = _LEADING_ID.match(text) if reader.has_binary else None
    if given is not None:  # each request has an id of its own; the rest of the head may be known
        text = b"{" + text[given.end() :]
    head = _heads.get(text) if reader.has_binary else None
    if head is None:
        head = _request_head(fields.parse_object(text, "the request"))
        # Without an id and without numbers, the next request may have the same head.
        again = reader.has_binary and not head.id and all(tensor.binary for tensor in head.inputs)
        if again and len(text) <= _KEPT_HEAD_BYTES:
            if len(_heads) >= _KEPT_HEADS:
                _heads.clear()
            _heads[text] = head
    inputs = tuple([tensor.read(reader) for tensor in head.inputs])
    reader.finish()
    if given is not None and head.id:
        raise WireError("the request has two ids")
    mark = head.id if given is None else given[1].decode()
    return InferRequest(inputs=inputs, outputs=head.outputs, id=mark, parameters=head.parameters)


@dataclass(frozen=True, slots=True)
class _RequestHead:
    """A request without its bytes."""

    inputs: tuple[Announced, ...]
    outputs: tuple[RequestedOutput, ...]
    id: str
    parameters: Mapping[str, Parameter]


_heads: dict[bytes, _RequestHead] = {}
"""The heads decoded last: a client's requests differ in their bytes alone, and parsing JSON takes longer than those.

Never one with numbers in it, which would keep an image in memory.
"""


def _request_head(header: dict[str, object]) -> _RequestHead:
    what = "the request"
    inputs = tuple(announced(raw, "input") for raw in fields.array_of(header, "inputs", what))
    _check_names(inputs, "input", what)
    outputs = tuple(_requested(raw) for raw in fields.array_of(header, "outputs", what))
    if outputs:
        _check_names(outputs, "output", what)
    parameters = MappingProxyType(fields.parameters(header.get("parameters"), what))
    return _RequestHead(inputs, outputs, _text(header, "id", what), parameters)


def _requested(raw: object) -> RequestedOutput:
    entry = fields.object_of(raw, "a requested output")
    name = fields.name(entry.get("name"), "the name of a requested output")
    extras = fields.parameters(entry.get("parameters"), f"output {name!r}")
    for unsupported in ("classification", "shared_memory_region"):
        if extras.get(unsupported):
            raise WireError(f"output {name!r} asks for {unsupported!r}, which is not supported")
    binary = extras.get("binary_data")
    if not isinstance(binary, bool | None):
        raise WireError(f"'binary_data' of output {name!r} must be true or false, got {fields.kind_of(binary)}")
    return RequestedOutput(name, binary)


# --- responses ------------------------------------------------------------------------------------


def encode_response(response: InferResponse, request: InferRequest | None = None) -> Encoded:
    """Encode a response; the request says which outputs are sent as bytes, and without it all are JSON.

    Raises:
        WireError: a value that JSON cannot express.
    """
    outputs = response.outputs
    binary = [request is not None and request.wants_binary(output.name) for output in outputs]
    if outputs and all(binary):
        shapes = tuple([(output.name, output.datatype, output.shape) for output in outputs])
        before, after = _binary_head(response.model_name, response.model_version, shapes)
        mark = b'"id":%b,' % _dump(response.id) if response.id else b""
        text = b"".join((before, mark, after))
        return _with_bytes(text, [in_wire_order(output) for output in outputs])
    entries = [tensor_entry(output, binary=as_bytes) for output, as_bytes in zip(outputs, binary, strict=True)]
    header = _names(response.model_name, response.model_version)
    if response.id:
        header["id"] = response.id
    header["outputs"] = [entry for entry, _ in entries]
    return _encode(header, [array for _, array in entries])


def _names(model: str, version: str) -> dict[str, object]:
    return {"model_name": model, "model_version": version} if version else {"model_name": model}


@lru_cache(maxsize=_KEPT_HEADS)
def _binary_head(model: str, version: str, shapes: tuple[tuple[str, str, tuple[int, ...]], ...]) -> tuple[bytes, bytes]:
    """Return the JSON of a response of bytes, before and after its id: the same for all of as many rows."""
    entries = [binary_entry(name, datatype, shape) for name, datatype, shape in shapes]
    return _dump(_names(model, version))[:-1] + b",", _dump({"outputs": entries})[1:]


def decode_response(body: bytes, header_length: int | str | None = None) -> InferResponse:
    """Decode a response from an untrusted server; see `decode_request` for the arguments.

    Raises:
        WireError: anything about it is not as the protocol says.
    """
    what = "the response"
    text, reader = _split(body, header_length)
    header = fields.parse_object(text, what)
    outputs = tuple(announced(raw, "output").read(reader) for raw in fields.array_of(header, "outputs", what))
    reader.finish()
    _check_names(outputs, "output", what)
    return InferResponse(
        model_name=fields.name(header.get("model_name"), "the response's 'model_name'"),
        outputs=outputs,
        model_version=_text(header, "model_version", what),
        id=_text(header, "id", what),
    )


# --- metadata -------------------------------------------------------------------------------------


def encode_metadata(metadata: ModelMetadata) -> bytes:
    """Encode a model's metadata."""
    value: dict[str, object] = {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [asdict(spec) for spec in metadata.inputs],
        "outputs": [asdict(spec) for spec in metadata.outputs],
    }
    if metadata.parameters:
        value["parameters"] = dict(metadata.parameters)
    return _dump(value)


def decode_metadata(body: bytes) -> ModelMetadata:
    """Decode a model's metadata. Parameters that are not scalars, which some servers send, are dropped.

    Raises:
        WireError: anything else is not as the protocol says.
    """
    what = "the metadata"
    raw = fields.parse_object(body, what)
    parameters = fields.object_of(raw.get("parameters") or {}, f"'parameters' of {what}")
    return ModelMetadata(
        name=fields.name(raw.get("name"), "the model's name"),
        versions=tuple(fields.name(v, "a version") for v in fields.array_of(raw, "versions", what)),
        platform=_text(raw, "platform", what),
        inputs=tuple(_spec(spec, "input") for spec in fields.array_of(raw, "inputs", what)),
        outputs=tuple(_spec(spec, "output") for spec in fields.array_of(raw, "outputs", what)),
        parameters=fields.parameters({k: v for k, v in parameters.items() if fields.is_scalar(v)}, what),
    )


def decode_extensions(body: bytes) -> frozenset[str]:
    """Decode which extensions of the protocol a server lists in its metadata.

    Raises:
        WireError: it is no JSON object, or its extensions are no list of names.
    """
    what = "the server's metadata"
    raw = fields.parse_object(body, what)
    return frozenset(fields.name(value, "an extension") for value in fields.array_of(raw, "extensions", what))


def _spec(raw: object, kind: str) -> TensorSpec:
    entry = fields.object_of(raw, f"an {kind} of the metadata")
    return fields.tensor_spec(entry.get("name"), entry.get("datatype"), entry.get("shape"), kind)


# --- what all messages share ----------------------------------------------------------------------


def _encode(header: dict[str, object], arrays: list[NDArray[Any] | None]) -> Encoded:
    text = _dump(header)
    binary = [array for array in arrays if array is not None]
    return _with_bytes(text, binary) if binary else Encoded(text, None)


def _with_bytes(text: bytes, arrays: list[NDArray[Any]]) -> Encoded:
    return Encoded(b"".join([text, *[array.data if array.size else b"" for array in arrays]]), len(text))


def _dump(value: object) -> bytes:
    try:
        return _ENCODER.encode(value).encode("ascii")
    except (ValueError, TypeError) as error:
        raise WireError(f"the message cannot be written as JSON: {type(error).__name__}") from None


def _split(body: bytes, header_length: int | str | None) -> tuple[bytes, Reader]:
    """Split a body into the JSON and what follows it."""
    if header_length is None:
        return body, Reader(None)
    text = str(header_length)
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LENGTH_DIGITS):
        raise WireError(f"{HEADER_LENGTH} must be a count of bytes")
    length = int(text)
    if length > len(body):
        raise WireError(f"{HEADER_LENGTH} says {length}, but the body has {len(body)} bytes")
    return bytes(body[:length]), Reader(memoryview(body)[length:])


def _text(raw: dict[str, object], key: str, what: str) -> str:
    return "" if raw.get(key) is None else fields.name(raw[key], f"{key!r} of {what}", empty=True)


def _check_names(named: tuple[Announced | RequestedOutput | Tensor, ...], kind: str, what: str) -> None:
    if not named:
        raise WireError(f"{what} has no '{kind}s'")
    if len({one.name for one in named}) != len(named):
        raise WireError(f"two {kind}s have the same name")
