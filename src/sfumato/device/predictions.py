"""Predictions: the device's own, and those that an endpoint returns, checked before they are used."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.class_map import ClassMap, are_probabilities, class_logits
from sfumato.artifacts.labelling import PRESENT_FROM, Labelling
from sfumato.device.transport import printable
from sfumato.errors import EndpointResponseInvalid
from sfumato.wire import InferResponse


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return each row's probabilities: (N, classes) finite floats -> (N, classes) float64 in [0, 1], sums 1."""
    scores = logits.astype(np.float64)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return each class's own probability: (N, classes) finite floats -> (N, classes) float64 in [0, 1]."""
    halved: NDArray[np.float64] = np.tanh(logits.astype(np.float64) / 2)  # of any size, without overflow
    return (1 + halved) / 2


def class_probabilities(logits: NDArray[Any], labelling: Labelling) -> NDArray[np.float64]:
    """Return the `softmax` of a single-label classifier's logits, the `sigmoid` of a multi-label one's."""
    return sigmoid(logits) if labelling == "multi-label" else softmax(logits)


@dataclass(frozen=True)
class InferResult:
    """A response, the length of the request's body, and the time from its first byte to the response's last."""

    response: InferResponse
    payload_bytes: int
    round_trip_ms: float


def new_request_id() -> str:
    """Return a mark for one request that no other one has."""
    return secrets.token_hex(8)


def check_origin(response: InferResponse, *, request_id: str, model: str) -> None:
    """Check that a response is the one to this request, and not an earlier or another client's.

    Servers that repeat no id are believed: the protocol asks for it, and some do not.

    Raises:
        EndpointResponseInvalid: another id, or another model.
    """
    if response.id not in ("", request_id):
        raise EndpointResponseInvalid("the response has the id of another request; the connection was closed")
    if response.model_name != model:
        raise EndpointResponseInvalid(
            f"the response is of the model {printable(response.model_name)!r}, {model!r} was asked; the connection was "
            "closed"
        )


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        label: the name of the likeliest class.
        index: its place among the bundle's labels.
        probability: its probability, in [0, 1]; NaN where an endpoint that takes image files does not say.
        probabilities: of every class, in the order of the labels; they sum to 1, unless the bundle is multi-label. Of
            an endpoint that takes image files they are what it says, and NaN for classes that it does not name.
        payload_bytes: the request's body, divided evenly among the images in it; 0 if nothing was sent.
        obfuscate_ms: decoding, resizing and obfuscating, per image.
        round_trip_ms: from the request's first byte to the response's last, retries included; 0 if nothing was sent.
        predicted_by: "cloud" if the obfuscated image was sent, "device" if it was handled on-device.
        out_of_distribution: whether the image is unlike the training images, so that the prediction should not be
            relied on; computed on the device, whoever predicted. None if the bundle is not calibrated for it.
        present: the names of the classes in the image, in the order of the labels: the likeliest alone, or with a
            multi-label bundle those with a probability of at least 0.5, which may be none.
    """

    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    payload_bytes: int
    obfuscate_ms: float
    round_trip_ms: float
    predicted_by: Literal["device", "cloud"]
    out_of_distribution: bool | None = None
    present: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        probabilities: Sequence[float],
        labels: Sequence[str],
        *,
        predicted_by: Literal["device", "cloud"],
        obfuscate_ms: float,
        index: int | None = None,
        payload_bytes: int = 0,
        round_trip_ms: float = 0.0,
        out_of_distribution: bool | None = None,
        labelling: Labelling = "single-label",
    ) -> Prediction:
        """Make a prediction of probabilities; `index` is the likeliest class unless given."""
        if index is None:
            index = max(range(len(probabilities)), key=lambda place: probabilities[place])
        present: tuple[str, ...] = (labels[index],)
        if labelling == "multi-label":
            present = tuple(name for name, p in zip(labels, probabilities, strict=True) if p >= PRESENT_FROM)
        return cls(
            label=labels[index],
            index=index,
            probability=probabilities[index],
            probabilities=tuple(probabilities),
            payload_bytes=payload_bytes,
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=round_trip_ms,
            predicted_by=predicted_by,
            out_of_distribution=out_of_distribution,
            present=present,
        )

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return the likeliest classes: index and probability, best first; fewer where the others' are not known."""
        known = [i for i, value in enumerate(self.probabilities) if i != self.index and not math.isnan(value)]
        order = [self.index, *sorted(known, key=lambda index: -self.probabilities[index])]
        return [(index, self.probabilities[index]) for index in order[:count]]


def read_predictions(
    result: InferResult,
    *,
    output_name: str | None,
    count: int,
    labels: Sequence[str],
    obfuscate_ms: float,
    class_map: ClassMap | None = None,
    labelling: Labelling = "single-label",
) -> list[Prediction]:
    """Check a response and turn its logits into predictions.

    Args:
        result: with the response as decoded.
        output_name: the output to read; None takes the first.
        count: how many images were sent.
        labels: one name per class.
        obfuscate_ms: per image.
        class_map: which outputs make up each class, if they are not the classes themselves.
        labelling: the bundle's.

    Raises:
        EndpointResponseInvalid: the output is missing, not floating-point, not finite, has not one row per image and
            one column per label, or per output of the class map, or holds probabilities that the class map would sum.
    """
    logits = next((tensor for tensor in result.response.outputs if output_name in (None, tensor.name)), None)
    if logits is None:
        raise EndpointResponseInvalid(f"the response lacks the output {output_name!r} that was asked for")
    if logits.array.dtype.kind != "f":
        raise EndpointResponseInvalid(f"the response holds {logits.datatype}; logits in floating point were expected")
    columns, of = (len(labels), "label") if class_map is None else (class_map.outputs, "output of the class map")
    if logits.shape != (count, columns):
        raise EndpointResponseInvalid(
            f"the response has the shape {list(logits.shape)}; "
            f"[{count}, {columns}] was expected: one row per image, one column per {of}"
        )
    if not np.isfinite(logits.array).all():
        raise EndpointResponseInvalid("the response holds NaN or infinite values")
    if class_map is not None and class_map.sums and are_probabilities(logits.array):
        raise EndpointResponseInvalid(
            "the response holds probabilities; the bundle's class map merges several outputs into one class, for which "
            "it needs logits: leave the model's softmax out"
        )
    scores = class_logits(logits.array, class_map)
    return [
        Prediction.of(
            row,
            labels,
            index=index,
            predicted_by="cloud",
            payload_bytes=round(result.payload_bytes / count),
            obfuscate_ms=obfuscate_ms,
            round_trip_ms=result.round_trip_ms,
            labelling=labelling,
        )
        for index, row in zip(
            scores.argmax(axis=1).tolist(), class_probabilities(scores, labelling).tolist(), strict=True
        )
    ]
