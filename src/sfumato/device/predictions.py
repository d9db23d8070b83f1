"""Answers: the device's own, and what the endpoint says, checked before anybody believes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfumato.device.gate import softmax
from sfumato.errors import EndpointAnswerInvalid
from sfumato.wire import InferResponse, Tensor


@dataclass(frozen=True)
class Answer:
    """The answer for one image.

    Attributes:
        label: the name of the likeliest class.
        index: its place among the bundle's labels.
        probability: its probability, in [0, 1]; NaN where an endpoint that takes image files does not say.
        probabilities: of every class, in the order of the labels; they sum to 1. Of an endpoint that takes image
            files they are what it says, and NaN for classes that it does not name.
        payload_bytes: the request's body, divided evenly among the images in it; 0 if nothing was sent.
        obfuscate_ms: decoding, resizing and obfuscating, per image.
        round_trip_ms: from the request's first byte to the answer's last, retries included; 0 if nothing was sent.
        answered_by: "cloud" if the obfuscated image was sent and the endpoint answered, "device" if the image
            stayed at home and the answer is the device's own.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    payload_bytes: int
    obfuscate_ms: float
    round_trip_ms: float
    answered_by: Literal["device", "cloud"]

    def top(self, count: int) -> list[tuple[int, float]]:
        """The likeliest classes: index and probability, best first; fewer where the others' are not known."""
        known = [i for i, value in enumerate(self.probabilities) if i != self.index and not math.isnan(value)]
        order = [self.index, *sorted(known, key=lambda index: -self.probabilities[index])]
        return [(index, self.probabilities[index]) for index in order[:count]]


def own_answer(probabilities: Sequence[float], labels: Sequence[str], *, obfuscate_ms: float) -> Answer:
    """The device's own answer for an image that stays at home.

    Args:
        probabilities: of every class, in [0, 1].
        labels: one name per class.
        obfuscate_ms: per image.
    """
    index = max(range(len(probabilities)), key=lambda place: probabilities[place])
    return Answer(
        label=labels[index],
        index=index,
        probability=probabilities[index],
        probabilities=tuple(probabilities),
        payload_bytes=0,
        obfuscate_ms=obfuscate_ms,
        round_trip_ms=0.0,
        answered_by="device",
    )


def read_answers(
    response: InferResponse,
    *,
    output_name: str | None,
    count: int,
    labels: Sequence[str],
    payload_bytes: int,
    obfuscate_ms: float,
    round_trip_ms: float,
) -> list[Answer]:
    """Checks a response and turns its logits into answers.

    Args:
        response: as decoded.
        output_name: the output to read; None takes the first.
        count: how many images were sent.
        labels: one name per class.
        payload_bytes: length of the request's body.
        obfuscate_ms: per image.
        round_trip_ms: of the request.

    Raises:
        EndpointAnswerInvalid: the output is missing, not floating-point, not finite, or has not one row per image
            and one column per label.
    """
    logits = _pick(response, output_name)
    if logits.array.dtype.kind != "f":
        raise EndpointAnswerInvalid(f"the answer holds {logits.datatype}; logits in floating point were expected")
    if logits.shape != (count, len(labels)):
        raise EndpointAnswerInvalid(
            f"the answer has the shape {list(logits.shape)}; "
            f"[{count}, {len(labels)}] was expected: one row per image, one column per label"
        )
    if not np.isfinite(logits.array).all():
        raise EndpointAnswerInvalid("the answer holds NaN or infinite values")
    return [
        Answer(
            label=labels[index],
            index=index,
            probability=row[index],
            probabilities=tuple(row),
            payload_bytes=round(payload_bytes / count),
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=round_trip_ms,
            answered_by="cloud",
        )
        for index, row in zip(logits.array.argmax(axis=1).tolist(), softmax(logits.array).tolist(), strict=True)
    ]


def _pick(response: InferResponse, output_name: str | None) -> Tensor:
    for output in response.outputs:
        if output_name in (None, output.name):
            return output
    raise EndpointAnswerInvalid(f"the answer lacks the output {output_name!r} that was asked for")
