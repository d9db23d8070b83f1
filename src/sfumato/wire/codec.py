"""Whole messages, to and from bytes.

A body is either JSON alone, or JSON followed by the bytes of those tensors that announce a
`binary_data_size`; the HTTP header `Inference-Header-Content-Length` then says where the JSON ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from sfumato.errors import WireError
from sfumato.wire import fields, tensors
from sfumato.wire.types import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    RequestedOutput,
    TensorSpec,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_LENGTH_DIGITS = 12
_KEPT_HEADS, _KEPT_HEAD_BYTES = 256, 4096
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


def encode_request(request: InferRequest, *, binary: bool = True) -> Encoded:
    """Encode a request; with `binary`, inputs are sent as bytes, of which JSON takes about five times as many.

    Raises:
        WireError: a value that JSON cannot express.
    """
    entries = [tensors.encode(tensor, binary=binary) for tensor in request.inputs]
    header: dict[str, Any] = {"id": request.id} if request.id else {}
    if request.parameters:
        header["parameters"] = dict(request.parameters)
    header["inputs"] = [entry for entry, _ in entries]
    if request.outputs:
        header["outputs"] = [_requested(output) for output in request.outputs]
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
    head = _heads.get(text) if reader.has_binary else None
    if head is None:
        head = _request_head(fields.parse_object(text, "the request"))
        if reader.has_binary and len(text) <= _KEPT_HEAD_BYTES and head.comes_again:
            if len(_heads) >= _KEPT_HEADS:
                _heads.clear()
            _heads[text] = head
    inputs = tuple(tensor.read(reader) for tensor in head.inputs)
    reader.finish()
    return InferRequest(inputs=inputs, outputs=head.outputs, id=head.id, parameters=head.parameters)


@dataclass(frozen=True, slots=True)
class _RequestHead:
    """A request without its bytes."""

    inputs: tuple[tensors.Announced, ...]
    outputs: tuple[RequestedOutput, ...]
    id: str
    parameters: Mapping[str, Parameter]

    @property
    def comes_again(self) -> bool:
        """Whether the next request may have the same: it has no id, and no numbers."""
        return not self.id and all(tensor.binary for tensor in self.inputs)


_heads: dict[bytes, _RequestHead] = {}
"""The heads decoded last: a client's requests differ in their bytes alone, and parsing JSON takes longer than those.

Never one with numbers in it, which would keep an image in memory.
"""


def _request_head(header: dict[str, Any]) -> _RequestHead:
    what = "the request"
    inputs = tuple(tensors.announced(raw, "input") for raw in fields.array_of(header, "inputs", what))
    if not inputs:
        raise WireError("the request has no 'inputs'")
    _refuse_duplicates([tensor.name for tensor in inputs], "input")
    outputs = tuple(_decode_requested(raw) for raw in fields.array_of(header, "outputs", what))
    _refuse_duplicates([output.name for output in outputs], "output")
    parameters = MappingProxyType(fields.parameters(header.get("parameters"), what))
    return _RequestHead(inputs, outputs, _id(header, what), parameters)


def encode_response(response: InferResponse, request: InferRequest | None = None) -> Encoded:
    """Encode a response; the request says which outputs are sent as bytes, and without it all are JSON.

    Raises:
        WireError: a value that JSON cannot express.
    """
    entries = [
        tensors.encode(tensor, binary=request is not None and request.wants_binary(tensor.name))
        for tensor in response.outputs
    ]
    header: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        header["model_version"] = response.model_version
    if response.id:
        header["id"] = response.id
    header["outputs"] = [entry for entry, _ in entries]
    return _encode(header, [array for _, array in entries])


def decode_response(body: bytes, header_length: int | str | None = None) -> InferResponse:
    """Decode a response from an untrusted server; see `decode_request` for the arguments.

    Raises:
        WireError: anything about it is not as the protocol says.
    """
    text, reader = _split(body, header_length)
    header = fields.parse_object(text, "the response")
    entries = fields.array_of(header, "outputs", "the response")
    outputs = tuple(tensors.announced(raw, "output").read(reader) for raw in entries)
    reader.finish()
    if not outputs:
        raise WireError("the response has no 'outputs'")
    _refuse_duplicates([tensor.name for tensor in outputs], "output")
    return InferResponse(
        model_name=fields.name(header.get("model_name"), "the response's 'model_name'"),
        outputs=outputs,
        model_version=_text(header.get("model_version"), "the response's 'model_version'"),
        id=_id(header, "the response"),
    )


def encode_metadata(metadata: ModelMetadata) -> bytes:
    """Encode a model's metadata."""
    value: dict[str, Any] = {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [_spec(spec) for spec in metadata.inputs],
        "outputs": [_spec(spec) for spec in metadata.outputs],
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
        platform=_text(raw.get("platform"), "the platform"),
        inputs=tuple(_decode_spec(spec, "input") for spec in fields.array_of(raw, "inputs", what)),
        outputs=tuple(_decode_spec(spec, "output") for spec in fields.array_of(raw, "outputs", what)),
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


def _encode(header: dict[str, Any], arrays: list[NDArray[Any] | None]) -> Encoded:
    text = _dump(header)
    binary = [array for array in arrays if array is not None]
    if not binary:
        return Encoded(text, None)
    return Encoded(b"".join([text, *(array.data if array.size else b"" for array in binary)]), len(text))


def _dump(value: Any) -> bytes:
    try:
        return _ENCODER.encode(value).encode("ascii")
    except (ValueError, TypeError) as error:
        raise WireError(f"the message cannot be written as JSON: {type(error).__name__}") from None


def _split(body: bytes, header_length: int | str | None) -> tuple[bytes, tensors.Reader]:
    """Split a body into the JSON and what follows it."""
    if header_length is None:
        return body, tensors.Reader(None)
    text = str(header_length)
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LENGTH_DIGITS):
        raise WireError(f"{HEADER_LENGTH} must be a count of bytes")
    length = int(text)
    if length > len(body):
        raise WireError(f"{HEADER_LENGTH} says {length}, but the body has {len(body)} bytes")
    return bytes(body[:length]), tensors.Reader(memoryview(body)[length:])


def _requested(output: RequestedOutput) -> dict[str, Any]:
    if output.binary is None:
        return {"name": output.name}
    return {"name": output.name, "parameters": {"binary_data": output.binary}}


def _decode_requested(raw: Any) -> RequestedOutput:
    entry = fields.object_of(raw, "a requested output")
    name = fields.name(entry.get("name"), "the name of a requested output")
    extras = fields.parameters(entry.get("parameters"), f"output {name!r}")
    for unsupported in ("classification", "shared_memory_region"):
        if extras.get(unsupported):
            raise WireError(f"output {name!r} asks for {unsupported!r}, which is not supported")
    return RequestedOutput(name, fields.boolean(extras.get("binary_data"), f"'binary_data' of output {name!r}"))


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _decode_spec(raw: Any, kind: str) -> TensorSpec:
    entry = fields.object_of(raw, f"an {kind} of the metadata")
    name = fields.name(entry.get("name"), f"the name of an {kind}")
    return TensorSpec(
        name=name,
        datatype=fields.name(entry.get("datatype"), f"the datatype of {kind} {name!r}"),
        shape=fields.shape(entry.get("shape"), f"{kind} {name!r}", wildcard=True),
    )


def _id(header: dict[str, Any], what: str) -> str:
    return _text(header.get("id"), f"the 'id' of {what}")


def _text(raw: Any, what: str) -> str:
    return "" if raw is None else fields.name(raw, what, empty=True)


def _refuse_duplicates(names: list[str], kind: str) -> None:
    if len(set(names)) != len(names):
        raise WireError(f"two {kind}s have the same name")
