"""Where the label lies in the JSON that an endpoint answers with, and which of the bundle's labels it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sfumato.errors import EndpointAnswerInvalid, WireError
from sfumato.wire import fields

_SHOWN, _SHOWN_CHARS = 8, 40


@dataclass(frozen=True)
class AnswerPlace:
    """Where the answer lies.

    Attributes:
        path: keys and places of lists, from 0, with dots between: `responses.0.labels`. "" is the whole JSON.
        label_key: what an object there calls the label.
        score_key: what it calls the score.
    """

    path: str = ""
    label_key: str = "label"
    score_key: str = "score"


def read_file_answer(body: bytes, place: AnswerPlace, labels: Sequence[str]) -> tuple[int, tuple[float, ...]]:
    """Reads the answer for one image.

    At the place may lie: a label; an object with a label and perhaps a score; a list of such objects; an object of
    scores by label; a list of scores, one for each of the bundle's labels. The highest score wins, and where there are
    none, the first label.

    Args:
        body: JSON.
        place: where to look.
        labels: the bundle's, one name per class.

    Returns:
        The class, and a probability for each class: scores in [0, 1] as they are; NaN where none is said, and for all
        if a score lies elsewhere, as then they only rank.

    Raises:
        EndpointAnswerInvalid: no JSON, nothing or something else at the place, or a label that the bundle lacks.
    """
    try:
        value = fields.parse(body, "the answer")
    except WireError as error:
        raise EndpointAnswerInvalid(str(error)) from None
    found = _scores(_at(value, place.path), place, labels)
    ranked = {index: score for index, score in found.items() if score is not None}
    best = max(ranked, key=lambda index: ranked[index]) if ranked else next(iter(found))
    if not all(0 <= score <= 1 for score in ranked.values()):
        ranked = {}
    return best, tuple(ranked.get(index, math.nan) for index in range(len(labels)))


def _at(value: Any, path: str) -> Any:
    walked = ""
    for step in path.split(".") if path else ():
        where = f"the answer at {walked!r}" if walked else "the answer"
        if isinstance(value, dict):
            if step not in value:
                raise EndpointAnswerInvalid(f"{where} has no {step!r}; it has {_shown(value)}")
            value = value[step]
        elif isinstance(value, list):
            if not step.isdecimal() or int(step) >= len(value):
                raise EndpointAnswerInvalid(f"{where} is a list of {len(value)}; there is no {step!r} in it")
            value = value[int(step)]
        else:
            raise EndpointAnswerInvalid(f"{where} is {_kind(value)}; there is no {step!r} in it")
        walked = f"{walked}.{step}" if walked else step
    return value


def _scores(value: Any, place: AnswerPlace, labels: Sequence[str]) -> dict[int, float | None]:
    """Class -> score, in the order of the answer; at least one."""
    where = f"the answer at {place.path!r}" if place.path else "the answer"
    if isinstance(value, str):
        return {_index(value, labels): None}
    if isinstance(value, list) and value and all(_is_number(score) for score in value):
        if len(value) != len(labels):
            raise EndpointAnswerInvalid(f"{where} has {len(value)} scores; the bundle has {len(labels)} labels")
        return dict(enumerate(_score(score, where) for score in value))
    entries: list[tuple[Any, Any]]
    if isinstance(value, dict) and value and place.label_key not in value and all(map(_is_number, value.values())):
        entries = list(value.items())
    else:
        objects = value if isinstance(value, list) else [value]
        entries = [_entry(item, place, where) for item in objects]
    found: dict[int, float | None] = {}
    for label, score in entries:
        index = _index(label, labels)
        if index in found:
            raise EndpointAnswerInvalid(f"{where} names the label {labels[index]!r} twice")
        found[index] = None if score is None else _score(score, where)
    if not found:
        raise EndpointAnswerInvalid(f"{where} is an empty list; labels were expected")
    return found


def _entry(item: Any, place: AnswerPlace, where: str) -> tuple[str, Any]:
    if not isinstance(item, dict):
        raise EndpointAnswerInvalid(
            f"{where} holds {_kind(item)}; a label, objects with {place.label_key!r} and {place.score_key!r}, or one "
            "score for each class were expected; say with a path where they lie"
        )
    label = item.get(place.label_key)
    if not isinstance(label, str):
        raise EndpointAnswerInvalid(
            f"{where} has no text under {place.label_key!r}; it has {_shown(item)}; say where the label lies, and what "
            "label and score are called"
        )
    return label, item.get(place.score_key)


def _score(value: Any, where: str) -> float:
    score = math.nan
    if _is_number(value):
        with suppress(OverflowError):  # JSON knows integers that float64 does not
            score = float(value)
    if not math.isfinite(score):
        raise EndpointAnswerInvalid(f"{where} has {_kind(value)} for a score; a finite number was expected")
    return score


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _index(label: str, labels: Sequence[str]) -> int:
    """The class of that name; if there is none, without case, "_" and "-", if only one is left."""
    if label in labels:
        return labels.index(label)
    alike = [index for index, ours in enumerate(labels) if _plain(ours) == _plain(label)]
    if len(alike) != 1:
        raise EndpointAnswerInvalid(
            f"the endpoint answers {_harmless(label)!r}, which is none of the bundle's labels ({_shown(labels)}): it "
            "serves another classifier, or calls the classes otherwise"
        )
    return alike[0]


def _plain(label: str) -> str:
    return label.casefold().replace("_", " ").replace("-", " ").strip()


def _shown(names: Mapping[str, Any] | Sequence[str]) -> str:
    some = [repr(_harmless(name)) for name in list(names)[:_SHOWN]]
    return (", ".join(some) or "nothing") + (", ..." if len(names) > _SHOWN else "")


def _harmless(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN_CHARS])


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
