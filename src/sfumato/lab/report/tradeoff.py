"""Whether offloading pays off: obfuscators compared with `sfumato.lab.audit.verdict.best_mixture`, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, Self

from sfumato.lab.audit.points import ENDS
from sfumato.lab.audit.schema import Point
from sfumato.lab.audit.verdict import PAYS_OFF_ABOVE, compared, decimals, percent

PaysOff = Literal["yes", "no", "unclear", "unknown"]


@dataclass(frozen=True)
class MeanAndDeviation:
    """A figure over several seeds; `std` is the sample standard deviation, None for a single seed."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Sum up one value for each seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """An obfuscator, or one setting of it with several seeds, compared with the best mixture at its leakage.

    Attributes:
        seeds: how many points it consists of.
        accuracy: in [0, 1].
        excess_leakage: over all images; a lower bound.
        mixture: accuracy of the best mixture at that leakage; None, like `gain` and `mixing`, where no on-device
            baseline was measured.
        gain: accuracy above the mixture's, seed by seed.
        mixing: what the mixture does.
        better: how many seeds gain more than `PAYS_OFF_ABOVE`.
        pays_off: "yes" if every seed does, "no" if their mean does not, "unclear" in between.
        budget: of the audits.
        attackers: the best ones, one for each seed.
    """

    name: str
    seeds: int
    accuracy: MeanAndDeviation
    excess_leakage: MeanAndDeviation
    mixture: MeanAndDeviation | None
    gain: MeanAndDeviation | None
    mixing: str | None
    better: int
    pays_off: PaysOff
    budget: str
    attackers: tuple[str, ...]


def row(name: str, points: Sequence[Point]) -> Row:
    """Sum up the points of one setting, one for each seed, as `sfumato.lab.audit.points.points_of` makes them."""
    accuracies = [point.accuracy for point in points]
    leakages = [point.excess_leakage for point in points if point.excess_leakage is not None]
    mixtures = [point.mixture for point in points if point.mixture is not None]
    gains = [a - m for a, m in zip(accuracies, mixtures, strict=True)] if len(mixtures) == len(points) else []
    better = sum(gain >= PAYS_OFF_ABOVE for gain in gains)
    pays_off: PaysOff = "unknown"
    if gains:
        pays_off = "yes" if better == len(gains) else "no" if fmean(gains) < PAYS_OFF_ABOVE else "unclear"
    return Row(
        name=name,
        seeds=len(points),
        accuracy=MeanAndDeviation.of(accuracies),
        excess_leakage=MeanAndDeviation.of(leakages),
        mixture=MeanAndDeviation.of(mixtures) if gains else None,
        gain=MeanAndDeviation.of(gains) if gains else None,
        mixing=points[0].mixing if gains else None,
        better=better,
        pays_off=pays_off,
        budget=str(points[0].budget),
        attackers=tuple(str(point.best_attacker) for point in points),
    )


def rows_of(points: Sequence[Point]) -> list[Row]:
    """Return one row for each audited obfuscator among points; the ends have none."""
    return [row(point.name, [point]) for point in points if point.role not in ENDS]


def sentence(of: Row) -> str:
    """Say whether a row pays off."""
    deviation = "" if of.accuracy.std is None else f" (standard deviation {100 * of.accuracy.std:.1f} points)"
    reached = (
        f"{of.name}: {percent(of.accuracy.mean)}{deviation} of the images are classified correctly at an excess "
        f"leakage of at least {decimals(of.excess_leakage.mean, 2)}"
    )
    if of.mixture is None:
        return f"{reached}; whether that pays off is not known."
    if of.pays_off == "unclear":
        mixed = percent(of.mixture.mean)
        return f"{reached}; {of.mixing} gives {mixed}, and {of.better} of {of.seeds} seeds do better."
    return f"{reached}: {compared(of.mixture.mean, str(of.mixing), better=of.pays_off == 'yes')}."


def verdict(rows: Sequence[Row]) -> tuple[PaysOff, list[str]]:
    """Say whether offloading pays off at any of these rows, of which there must be one, and why, in sentences."""
    gains = [(of.gain.mean, of) for of in rows if of.gain is not None]
    if not gains:
        return "unknown", [
            "Whether offloading pays off is not known: no on-device baseline was measured. What is lost without one "
            "are the line and the curve that an obfuscator has to lie above."
        ]
    known = [of for _, of in gains]
    pays_off = min((of.pays_off for of in known), key=("yes", "unclear", "no").index)
    gain, best = max((one for one in gains if one[1].pays_off == pays_off), key=lambda one: one[0])
    among = f"{len(known)} points" if len(known) > 1 else "one point"
    points = f"{100 * abs(gain):.1f} percentage points"
    if pays_off == "yes":
        count = sum(of.pays_off == "yes" for of in known)
        why = (
            f"Offloading pays off at {count} of {among}, as far as these attackers got. {sentence(best)} "
            f"That is {points} more, the most of all."
        )
    elif pays_off == "unclear":
        why = f"It is not clear whether offloading pays off. {sentence(best)}"
    else:
        side = "below" if gain < 0 else "above, which is chance,"
        why = (
            f"Offloading does not pay off at any of {among}: {best.name} comes closest, {points} {side} what is "
            f"reached at its leakage by {best.mixing}."
        )
    return pays_off, [why, _rests_on(known)]


def _rests_on(rows: Sequence[Row]) -> str:
    budgets = ", ".join(f'"{name}"' for name in dict.fromkeys(of.budget for of in rows))
    seeds = sorted({of.seeds for of in rows})
    parts = [
        f"The leakage is what attackers of the budget {budgets} found, a lower bound: what more they find raises what "
        "has to be exceeded"
    ]
    if seeds == [1]:
        parts.append("each point is one training, so the variation between trainings is not counted")
    else:
        parts.append(f"each point is the mean over {' or '.join(map(str, seeds))} seeds")
    if len(rows) > 1:
        parts.append("the best of several points was chosen on the same test images")
    return "; ".join(parts) + "."
