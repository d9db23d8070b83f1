"""Read the prediction from an endpoint's JSON: where it lies, and which of the bundle's labels it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeGuard

from sfumato.artifacts.class_map import ClassMap
from sfumato.device.transport import printable
from sfumato.errors import EndpointResponseInvalid, WireError
from sfumato.wire import fields

_SHOWN, _SHOWN_CHARS = 8, 40


@dataclass(frozen=True)
class ResponseFormat:
    """The place of the prediction in a response, and what objects there call label and score; see `FileClient`."""

    path: str = ""
    label_key: str = "label"
    score_key: str = "score"

    def __str__(self) -> str:
        return f"the response at {self.path!r}" if self.path else "the response"


def read_file_response(
    body: bytes, place: ResponseFormat, labels: Sequence[str], class_map: ClassMap | None = None
) -> tuple[int, tuple[float, ...]]:
    """Read the prediction for one image.

    At the path may lie: a label; an object with a label and perhaps a score; a list of such objects; an object of
    scores by label; a list of scores, one for each of the bundle's labels. The highest score wins; without scores,
    the first label. With a class map it has to be a list of scores, one for each output: other responses may leave
    some out, and name them in the classifier's words.

    Args:
        body: JSON.
        place: where the prediction lies.
        labels: the bundle's, one name per class.
        class_map: the bundle's.

    Returns:
        The class, and a probability for each class: scores in [0, 1] as they are, or as the class map merges them; NaN
        where none is given, and for all if any score lies outside [0, 1], as then they only rank.

    Raises:
        EndpointResponseInvalid: no JSON, nothing or something else at the place, a label that the bundle lacks, or what
            the class map cannot merge.
    """
    try:
        value = fields.parse(body, "the response")
    except WireError as error:
        raise EndpointResponseInvalid(str(error)) from None
    steps = place.path.split(".") if place.path else []
    for number, step in enumerate(steps):
        value = _step(value, step, ResponseFormat(".".join(steps[:number])))
    if class_map is not None:
        return _merged(value, place, class_map)
    found = _scores(value, place, labels)
    ranked = {index: score for index, score in found.items() if score is not None}
    best = max(ranked, key=lambda index: ranked[index]) if ranked else next(iter(found))
    if not all(0 <= score <= 1 for score in ranked.values()):
        ranked = {}
    return best, tuple(ranked.get(index, math.nan) for index in range(len(labels)))


def _step(value: object, step: str, where: ResponseFormat) -> object:
    if isinstance(value, dict):
        if step not in value:
            raise EndpointResponseInvalid(f"{where} has no {step!r}; it has {_shown(value)}")
        return value[step]
    if not isinstance(value, list):
        raise EndpointResponseInvalid(f"{where} is {fields.kind_of(value)}; there is no {step!r} in it")
    if not step.isdecimal() or int(step) >= len(value):
        raise EndpointResponseInvalid(f"{where} is a list of {len(value)}; there is no {step!r} in it")
    return value[int(step)]


def _scores(value: object, place: ResponseFormat, labels: Sequence[str]) -> dict[int, float | None]:
    """Return class -> score, in the order of the response; at least one."""
    if isinstance(value, str):
        return {_index(value, labels): None}
    if isinstance(value, list) and value and all(_is_number(score) for score in value):
        if len(value) != len(labels):
            raise EndpointResponseInvalid(f"{place} has {len(value)} scores; the bundle has {len(labels)} labels")
        return dict(enumerate(_score(score, place) for score in value))
    if isinstance(value, dict) and value and place.label_key not in value and all(map(_is_number, value.values())):
        entries = list(value.items())
    else:
        entries = [_entry(item, place) for item in (value if isinstance(value, list) else [value])]
    found: dict[int, float | None] = {}
    for label, score in entries:
        index = _index(label, labels)
        if index in found:
            raise EndpointResponseInvalid(f"{place} names the label {labels[index]!r} twice")
        found[index] = None if score is None else _score(score, place)
    if not found:
        raise EndpointResponseInvalid(f"{place} is an empty list; labels were expected")
    return found


def _merged(value: object, place: ResponseFormat, class_map: ClassMap) -> tuple[int, tuple[float, ...]]:
    """Return the class and the probabilities of a list of scores, one for each output."""
    if not isinstance(value, list) or len(value) != class_map.outputs or not all(map(_is_number, value)):
        got = f"a list of {len(value)}" if isinstance(value, list) else fields.kind_of(value)
        raise EndpointResponseInvalid(
            f"{place} is {got}; the bundle's class map merges a list of {class_map.outputs} scores, "
            "one for each output of the classifier: say with a path where it lies"
        )
    scores = [_score(score, place) for score in value]
    ranks_only = not all(0 <= score <= 1 for score in scores)
    merged = [sum(scores[index] for index in group) for group in class_map.groups]
    if ranks_only and class_map.sums:
        raise EndpointResponseInvalid(
            f"{place} has scores outside [0, 1]; the bundle's class map sums several into one class, and needs "
            "probabilities for that"
        )
    total = sum(merged)
    if not ranks_only and not total > 0:
        raise EndpointResponseInvalid(f"{place} has the score 0 for every output that the bundle's class map names")
    best = max(range(len(merged)), key=lambda index: merged[index])
    return best, tuple(math.nan if ranks_only else score / total for score in merged)


def _entry(item: object, place: ResponseFormat) -> tuple[str, object]:
    if not isinstance(item, dict):
        raise EndpointResponseInvalid(
            f"{place} holds {fields.kind_of(item)}; a label, objects with {place.label_key!r} and {place.score_key!r}, "
            "or one score for each class were expected; say with a path where they lie"
        )
    label = item.get(place.label_key)
    if not isinstance(label, str):
        raise EndpointResponseInvalid(
            f"{place} has no string under {place.label_key!r}; it has {_shown(item)}; say where the label lies, and "
            "what label and score are called"
        )
    return label, item.get(place.score_key)


def _score(value: object, place: ResponseFormat) -> float:
    with suppress(OverflowError):  # JSON knows integers that float64 does not
        if _is_number(value) and math.isfinite(value):
            return float(value)
    raise EndpointResponseInvalid(f"{place} has {fields.kind_of(value)} for a score; a finite number was expected")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _index(label: str, labels: Sequence[str]) -> int:
    """Return the class of that name; if there is none, the only one that differs in case, "_" and "-" alone."""
    if label in labels:
        return labels.index(label)
    plain = [own.casefold().replace("_", " ").replace("-", " ").strip() for own in (label, *labels)]
    alike = [index for index, own in enumerate(plain[1:]) if own == plain[0]]
    if len(alike) != 1:
        raise EndpointResponseInvalid(
            f"the endpoint returns {printable(label, _SHOWN_CHARS)!r}, which is none of the bundle's labels "
            f"({_shown(labels)}): it serves another classifier, or names the classes differently"
        )
    return alike[0]


def _shown(names: Mapping[str, object] | Sequence[str]) -> str:
    some = [repr(printable(name, _SHOWN_CHARS)) for name in list(names)[:_SHOWN]]
    return (", ".join(some) or "nothing") + (", ..." if len(names) > _SHOWN else "")
