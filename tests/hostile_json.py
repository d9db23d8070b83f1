"""Files of JSON that are almost what they should be: one value of a real one replaced by what nobody expects."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

HOSTILE = st.one_of(
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 10**400, -(10**400), 2**64, -1, 0, 0.5, 1e308]),
    st.sampled_from([None, True, False, "", "text", "\0", "a" * 5000, "../x", "1", "NaN", "\ud800", "\x1b[2J"]),
    st.sampled_from([[], {}, [[]], {"": None}, [None] * 3, [float("inf")] * 3, ["1", "1", "1"], {"a" * 5000: "x"}]),
    st.integers(1, 200).map(lambda depth: json.loads("[" * depth + "]" * depth)),
).map(copy.deepcopy)
"""Values that have no business where they are put; a value is changed further, so each is a copy."""


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in a JSON value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in inner for found in places(item, (*place, key)))]


@st.composite
def damaged(draw: st.DrawFn, real: Any) -> str:
    """Return the text of a JSON file that differs from the real one in up to three places; keys may stand twice."""
    value = copy.deepcopy(real)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(value) if place] or [(None,)]))
        if last is None:
            break
        inside = value
        for key in way:
            inside = inside[key]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            inside[last] = draw(HOSTILE)
        elif what == "remove":
            del inside[last]
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(["", "more", "a" * 5000]))] = draw(HOSTILE)
    text = json.dumps(value)
    if draw(st.integers(0, 9)) == 0 and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw(HOSTILE))}}}"
    return text
