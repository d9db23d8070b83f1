"""Selective offloading: logits to probabilities, and which images have to be sent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Gate


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return each row's probabilities: (N, classes) finite floats -> (N, classes) float64 in [0, 1], sums 1."""
    scores = logits.astype(np.float64)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def has_to_be_sent(probabilities: NDArray[np.float64], gate: Gate) -> NDArray[np.bool_]:
    """Return which images have to be sent.

    Args:
        probabilities: the device's own: (N, classes) float64 in [0, 1].
        gate: with the threshold.

    Returns:
        (N,) bool: the largest probability is below the threshold.
    """
    below: NDArray[np.bool_] = probabilities.max(axis=1) < gate.threshold
    return below
