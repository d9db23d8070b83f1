"""Reading JSON from an untrusted sender: each function returns a checked value or raises `WireError`.

`what` is what messages call the value, such as "the request".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from sfumato.errors import WireError
from sfumato.wire.types import Parameter, TensorSpec

MAX_NAME_CHARS = 256
MAX_TEXT_CHARS = 1 << 20  # metadata may list thousands of labels in one string
MAX_TENSORS = 64
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**31 - 1
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def _refuse_constant(_: str) -> NoReturn:
    raise WireError("NaN and Infinity are not valid JSON; send binary tensor data if they are meant")


# Made once: `json.loads` with an argument makes another one on every call.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse(text: bytes | memoryview, what: str) -> Any:
    """Parse JSON in UTF-8, without NaN and Infinity, and not nested too deeply."""
    try:
        return _DECODER.decode(str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        # The parser's own message may quote the body; only the kind of failure is passed on.
        reason = f"at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise WireError(f"{what} is not valid JSON ({reason})") from None


def parse_object(text: bytes | memoryview, what: str) -> dict[str, object]:
    """Parse a JSON object, otherwise as `parse`."""
    return object_of(parse(text, what), what)


def object_of(raw: object, what: str) -> dict[str, object]:
    """Check that a value is a JSON object."""
    if not isinstance(raw, dict):
        raise WireError(f"{what} must be a JSON object, got {kind_of(raw)}")
    return raw


def array_of(raw: Mapping[str, object], key: str, what: str) -> list[object]:
    """Return the list at `key`, of at most `MAX_TENSORS` entries; an empty one if there is none."""
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise WireError(f"{key!r} of {what} must be a list, got {kind_of(value)}")
    if len(value) > MAX_TENSORS:
        raise WireError(f"{key!r} of {what} has {len(value)} entries; at most {MAX_TENSORS} are allowed")
    return value


def name(raw: object, what: str, *, empty: bool = False) -> str:
    """Check a name: printable, at most `MAX_NAME_CHARS` long, and not empty unless allowed."""
    if not isinstance(raw, str):
        raise WireError(f"{what} must be a string, got {kind_of(raw)}")
    if len(raw) > MAX_NAME_CHARS:
        raise WireError(f"{what} has {len(raw)} characters; at most {MAX_NAME_CHARS} are allowed")
    if not raw.isprintable() or not (raw or empty):
        raise WireError(f"{what} must be printable and not empty")
    return raw


def parameters(raw: object, what: str) -> dict[str, Parameter]:
    """Check scalars by name (see `is_scalar`); null counts as none."""
    checked: dict[str, Parameter] = {}
    for key, value in object_of({} if raw is None else raw, f"'parameters' of {what}").items():
        if not is_scalar(value):
            raise WireError(f"a parameter of {what} is {kind_of(value)}; expected a string, a number or a boolean")
        checked[name(key, f"a parameter of {what}")] = value
    return checked


def is_scalar(value: object) -> TypeGuard[Parameter]:
    """Return whether the protocol allows it as a parameter's value: a string, a finite number or a boolean."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT_CHARS
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def is_token(text: str) -> bool:
    """Return whether a text can be a bearer token: printable ASCII without spaces, and not empty."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def shape(raw: object, what: str, *, wildcard: bool = False) -> tuple[int, ...]:
    """Check a tensor's dimensions: at most `MAX_DIMENSIONS`, and `MAX_ELEMENTS` elements.

    With `wildcard`, -1 stands for "any size", as in metadata.
    """
    if not isinstance(raw, list) or len(raw) > MAX_DIMENSIONS:
        raise WireError(f"the shape of {what} must be a list of at most {MAX_DIMENSIONS} integers")
    lowest = -1 if wildcard else 0
    if any(type(size) is not int or size < lowest for size in raw):
        raise WireError(f"the shape of {what} must consist of integers that are not negative")
    # Empty dimensions count as one here: numpy refuses a huge one even beside a zero.
    if math.prod(max(1, size) for size in raw) > MAX_ELEMENTS:
        raise WireError(f"the shape of {what} has more than {MAX_ELEMENTS} elements")
    return tuple(raw)


def tensor_spec(called: object, datatype: object, sizes: object, kind: str, *, wildcard: bool = True) -> TensorSpec:
    """Check the description of an input or output (`kind`): its name, datatype and shape."""
    what = f"{kind} {name(called, f'the name of an {kind}')!r}"
    return TensorSpec(str(called), name(datatype, f"the datatype of {what}"), shape(sizes, what, wildcard=wildcard))


def kind_of(value: object) -> str:
    """Return what a JSON value is, for messages: "an object", "a number", ..."""
    return _KINDS.get(type(value), "a number")
