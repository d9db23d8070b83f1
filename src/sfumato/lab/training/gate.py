"""The gate: calibrate the device's confidence, and choose the threshold of selective offloading."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.device.predictions import softmax

_RANGE = 0.05, 20.0


@torch.enable_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the number in [0.05, 20] to divide logits by so that their probabilities are calibrated.

    Logits are (N, classes) float32, of images that were not trained on; labels (N,) int64.

    Source: Guo et al. 2017, section 4.2. The loss is convex in the reciprocal, so bisection finds it.
    """
    low, high = (1 / bound for bound in reversed(_RANGE))
    for _ in range(40):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits.double() * middle, labels), middle)
        point = float(middle.detach())
        low, high = (low, point) if slope > 0 else (point, high)
    return 2 / (low + high)


def choose_threshold(logits: Tensor, offload_rate: float) -> float:
    """Return the probability below which an image is sent, so that a given share of these images is.

    Logits are (N, classes) float32, calibrated; the share `offload_rate` and the result are in [0, 1]; 0 sends nothing.
    Images exactly at the threshold, and those of probability 1 at any rate, are handled on-device, so that fewer may be
    sent.
    """
    sure = np.sort(softmax(logits.numpy()).max(axis=1))  # as the device computes it
    sent = round(offload_rate * len(sure))
    if sent == 0:
        return 0.0
    return 1.0 if sent == len(sure) else float(sure[sent])
