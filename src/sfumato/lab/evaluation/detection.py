"""How well scores tell two kinds of images apart: area under the ROC curve, and detections at few false alarms.

Source: Carlini et al. 2022 (Membership Inference Attacks From First Principles), which asks for the low rates.
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.evaluation.measures import proportion_interval

FALSE_POSITIVE_RATES = (0.001, 0.01)
_RESAMPLES = 1_000
_TAILS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Detected:
    """The share of positives above the threshold that at most `fpr` of the negatives exceed; chance is `fpr` itself.

    Attributes:
        fpr: in [0, 1].
        tpr: in [0, 1]; None, as the bounds, where fewer than `1 / fpr` negatives were scored.
        low: of its 95 % interval.
        high: likewise.
    """

    fpr: float
    tpr: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Detection:
    """How well scores tell positives from negatives.

    Attributes:
        auc: area under the ROC curve, in [0, 1]: how often a positive has the higher score than a negative, where equal
            scores count half. Chance is 0.5.
        auc_low: of its 95 % interval.
        auc_high: likewise.
        rates: one for each of `FALSE_POSITIVE_RATES`.
    """

    auc: float
    auc_low: float
    auc_high: float
    rates: tuple[Detected, ...]


def detection(positives: Tensor, negatives: Tensor, *, seed: int = 0) -> Detection:
    """Measure how well scores tell positives from negatives; higher scores are positive.

    Intervals are percentiles of 1,000 stratified bootstrap resamples, which move the threshold, too. Those of rates are
    extended to Wilson's, because resampling finds no variation where nothing was detected.

    Args:
        positives: (N,) float, N at least 2.
        negatives: (M,) float, M at least 2.
        seed: of the resampling.

    Raises:
        AuditError: fewer scores, or scores that are NaN.
    """
    for scores in (positives, negatives):
        if scores.ndim != 1 or len(scores) < 2:
            raise AuditError(f"scores of shape {tuple(scores.shape)}: a row of at least 2 for each kind is needed")
        if bool(scores.isnan().any()):
            raise AuditError("some scores are NaN: the attack that gave them is broken, or the payload is not finite")
    positives, negatives = positives.double(), negatives.double()
    source = torch.Generator().manual_seed(seed)
    resampled = torch.stack([_figures(_again(positives, source), _again(negatives, source)) for _ in range(_RESAMPLES)])
    auc, *rates = _figures(positives, negatives).tolist()
    (low, *lows), (high, *highs) = torch.quantile(resampled, _TAILS, dim=0).tolist()
    found = []
    for fpr, rate, bottom, top in zip(FALSE_POSITIVE_RATES, rates, lows, highs, strict=True):
        if round(fpr * len(negatives), 6) < 1:
            found.append(Detected(fpr))
            continue
        least, most = proportion_interval(round(rate * len(positives)), len(positives))
        found.append(Detected(fpr, rate, min(bottom, least), max(top, most)))
    return Detection(auc, low, high, tuple(found))


def _again(scores: Tensor, source: torch.Generator) -> Tensor:
    return scores[torch.randint(len(scores), (len(scores),), generator=source)]


def _figures(positives: Tensor, negatives: Tensor) -> Tensor:
    """The area under the curve, then the share of positives detected at each of `FALSE_POSITIVE_RATES`."""
    ordered = negatives.sort().values
    below, not_above = (torch.searchsorted(ordered, positives, right=right) for right in (False, True))
    auc = (below + not_above).double().mean() / (2 * len(ordered))
    allowed = (int(round(fpr * len(ordered), 6)) for fpr in FALSE_POSITIVE_RATES)
    rates = [(positives > ordered[len(ordered) - 1 - count]).double().mean() for count in allowed]
    return torch.stack([auc, *rates])
