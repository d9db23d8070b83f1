"""Seeded mutations of bytes and of JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

INTERESTING = (
    b"\0",
    b"\xff" * 4,
    b"\r\n",
    b"\r\n\r\n",
    b'"',
    b"{",
    b"[" * 64,
    b"9" * 20,
    b"-1",
    b"1e999",
    b"\xed\xa0\x80",
)
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "-0", "01", "0x1", "1.", "tru", "'a'", "/**/",
    "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, '"\\ud800"', '"\\u0000"', '"a\nb"', '"\x7f\u202e"',
)  # fmt: skip
"""Text that takes a value's place: what JSON forbids, or allows and nobody expects."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 255, 256, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 0.5, -0.0, 1e308, 5e-324,
    "", "x", "x" * 5000, "../../etc/passwd", "\x1b[31m", "ß\U0001f600", [], [[]], {}, [0] * 100, ["a", 1], {"a": 1},
    {"": None}, "FP32", "BYTES", "INT64", "BOOL",
)  # fmt: skip
_HOLE = "@hole@"


def mutated_bytes(rng: random.Random, data: bytes, *, most: int = 3) -> bytes:
    """Return bytes with 1 to `most` changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(_BYTE_CHANGES)(rng, changed)
    return bytes(changed)


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with one bit changed."""
    changed = bytearray(data)
    _flip(rng, changed)
    return bytes(changed)


def truncated(rng: random.Random, data: bytes) -> bytes:
    """Return the beginning of bytes."""
    return data[: rng.randrange(len(data))]


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(len(data)) if data else 0


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    at, new = _place(rng, data), rng.randbytes(rng.randint(1, 8))
    data[at : at + len(new)] = new


def _insert(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = rng.choice(INTERESTING)


def _delete(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 16, 64))]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = _place(rng, data)
    data[at:at] = data[at : at + rng.randint(1, 64)]


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def _append(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.randint(1, 16))


_BYTE_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip, _overwrite, _insert, _delete, _repeat, _cut, _append,
)  # fmt: skip


def mutated_json(rng: random.Random, value: Any, *, most: int = 2) -> bytes:
    """Return the JSON of a value with 1 to `most` changes: other values, keys gone, twice or of another name."""
    value = copy.deepcopy(value)
    holes: list[str] = []
    for _ in range(rng.randint(1, most)):
        value = _changed(rng, value, holes)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for number, raw in enumerate(holes):
        text = text.replace(f'"{_HOLE}{number}"', raw)
    return text.encode("utf-8", "surrogatepass")


def _changed(rng: random.Random, value: Any, holes: list[str]) -> Any:
    """Change something at a random place below a value, in place where that is possible."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.02:
        return _other(rng, value, holes)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.7:
        value[key] = _changed(rng, value[key], holes)
    elif isinstance(value, dict) and rng.random() < 0.4:
        _change_keys(rng, value, key, holes)
    elif isinstance(value, list) and rng.random() < 0.4:
        if rng.random() < 0.5:
            del value[key]
        else:
            value.extend([copy.deepcopy(value[key])] * rng.choice((1, 2, 70)))
    else:
        value[key] = _other(rng, value[key], holes)
    return value


def _change_keys(rng: random.Random, value: dict[str, Any], key: str, holes: list[str]) -> None:
    how = rng.randrange(3)
    if how == 0:
        del value[key]
    elif how == 1:
        value[rng.choice(("", "__class__", key.upper(), key + "\0", "x" * 300))] = value.pop(key)
    else:  # the same key twice
        holes.append(json.dumps(key))
        value[f"{_HOLE}{len(holes) - 1}"] = _other(rng, value[key], holes)


def _other(rng: random.Random, value: Any, holes: list[str]) -> Any:
    if rng.random() < 0.3:
        holes.append(rng.choice(RAW))
        return f"{_HOLE}{len(holes) - 1}"
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice((-1, 1))
    return copy.deepcopy(rng.choice(VALUES))
