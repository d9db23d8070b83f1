"""Mutated messages for the codec: each is a message or a `WireError`, and what is accepted can be written again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from isolated import Judge
from mutate import flipped, mutated_bytes, mutated_json, truncated
from outcomes import ACCEPTED, REFUSED, Judged, told

from sfumato import wire
from sfumato.errors import WireError

MUTATIONS = ("none", "JSON", "header length", "flipped bit", "truncated", "bytes", "random bytes")
_MOST_ERROR_CHARS = 4000
_WITH_LENGTH = (wire.decode_request, wire.decode_response)


@dataclass(frozen=True)
class Message:
    """A valid message: how it is decoded, its bytes, and how many of them are JSON if binary tensors follow."""

    decode: Callable[..., Any]
    body: bytes
    header_length: int | None
    value: Any


def messages() -> list[Message]:
    """Return valid messages of every kind and datatype."""
    rng = np.random.default_rng(0)
    found = []
    for name, dtype in wire.DTYPES.items():
        for shape in ((), (0,), (2, 3), (1, 3, 4, 4)):
            values = rng.integers(0, 2, shape).astype(dtype)
            tensors = (wire.Tensor("input", values), wire.Tensor("other", values[..., :1] if shape else values))
            outputs = (wire.RequestedOutput("logits", True), wire.RequestedOutput("more"))
            for binary in (True, False):
                request = wire.InferRequest(tensors, outputs if binary else (), "an id", {"sequence": 3, "a": "b"})
                encoded = wire.encode_request(request, binary=binary)
                found.append(Message(wire.decode_request, encoded.body, encoded.header_length, request))
                response = wire.InferResponse(name.lower(), tensors, "1", "an id")
                asked = wire.InferRequest(tensors, parameters={"binary_data_output": binary})
                encoded = wire.encode_response(response, asked)
                found.append(Message(wire.decode_response, encoded.body, encoded.header_length, response))
    spec = wire.TensorSpec("input", "FP32", (-1, 3, 8, 8))
    metadata = wire.ModelMetadata("tiny", ("1", "2"), "onnx", (spec,), (spec, spec), {"labels": '["a"]', "f": 1.5})
    listed = b'{"name": "sfumato", "version": "1", "extensions": ["binary_tensor_data", "more"]}'
    found += [Message(wire.decode_metadata, wire.encode_metadata(metadata), None, metadata)] * 8
    found += [Message(wire.decode_extensions, listed, None, frozenset({"binary_tensor_data", "more"}))] * 4
    return found


def judge() -> Judge:
    """Return the function that makes an input and judges what the codec does with it."""
    valid = messages()
    heads = [json.loads(one.body[: one.header_length]) for one in valid]

    def judged(rng: random.Random) -> Judged:
        number = rng.randrange(len(valid))
        message, mutation = valid[number], rng.choice(MUTATIONS)
        body, length = _mutated(rng, message, heads[number], mutation)
        return _judged(message, mutation, body, length)

    return judged


def _mutated(rng: random.Random, message: Message, head: Any, mutation: str) -> tuple[bytes, int | str | None]:
    length: int | str | None = message.header_length
    match mutation:
        case "none":
            return message.body, length
        case "JSON":
            text = mutated_json(rng, head)
            if message.header_length is None:
                return text, None
            return text + message.body[message.header_length :], len(text)
        case "header length":
            odd = ("", "-1", "+1", "1_0", "٣", "9" * 12, "9" * 400, "1.0", " 5", "0x10", "nan")
            other = rng.choice((None, rng.choice(odd), rng.randrange(len(message.body) + 2)))
            return message.body, other if message.decode in _WITH_LENGTH else None
        case "flipped bit":
            return flipped(rng, message.body), length
        case "truncated":
            return truncated(rng, message.body), length
        case "bytes":
            return mutated_bytes(rng, message.body), length
    other = rng.choice((None, rng.randrange(400)))
    return rng.randbytes(rng.randrange(400)), other if message.decode in _WITH_LENGTH else None


def _judged(message: Message, mutation: str, body: bytes, length: int | str | None) -> Judged:
    example = f"{message.decode.__name__} {length!r}\n".encode() + body
    try:
        value = message.decode(body) if length is None else message.decode(body, length)
    except WireError as error:
        said = str(error)
        if mutation == "none":
            return Judged(mutation, "wrong", "a valid message is refused", example)
        if not said.isprintable() or len(said) > _MOST_ERROR_CHARS:
            return Judged(mutation, "wrong", "the error quotes what cannot be printed, or too much", example)
        return Judged(mutation, REFUSED)
    except Exception as error:
        return Judged(mutation, "unexpected error", told(error), example)
    wrong = _wrong(message, mutation, body, value)
    return Judged(mutation, "wrong", wrong, example) if wrong else Judged(mutation, ACCEPTED)


def _wrong(message: Message, mutation: str, body: bytes, value: Any) -> str:
    """Return what is wrong with an accepted message, "" if nothing is."""
    if type(value) is not type(message.value):
        return f"a {type(value).__name__} was decoded"
    if mutation == "none" and value != message.value:
        return "a valid message is decoded to something else"
    arrays = [tensor.array for tensor in _tensors(value)]
    if sum(array.size for array in arrays) > len(body):
        return "there are more values than bytes"
    try:
        again = _again(value)
    except Exception as error:
        return f"what was accepted cannot be written: {told(error)}"
    return "" if again == value else "what was accepted is another message when it is written and read again"


def _tensors(value: Any) -> tuple[wire.Tensor, ...]:
    match value:
        case wire.InferRequest():
            return value.inputs
        case wire.InferResponse():
            return value.outputs
    return ()


def _again(value: Any) -> Any:
    match value:
        case wire.InferRequest():
            encoded = wire.encode_request(value)
            return wire.decode_request(encoded.body, encoded.header_length)
        case wire.InferResponse():
            encoded = wire.encode_response(value, wire.InferRequest((), parameters={"binary_data_output": True}))
            return wire.decode_response(encoded.body, encoded.header_length)
        case wire.ModelMetadata():
            return wire.decode_metadata(wire.encode_metadata(value))
    return value


def corpus() -> list[bytes]:
    """Return inputs for the coverage-guided fuzzer: a byte for the decoder, two for the header's length, the body."""
    decoders = [wire.decode_request, wire.decode_response, wire.decode_metadata, wire.decode_extensions]
    return [
        bytes([decoders.index(one.decode)]) + (one.header_length or 0xFFFF).to_bytes(2) + one.body
        for one in messages()[::3]
    ]
