"""Whether offloading pays off: obfuscators compared with what is reached without one, in words.

The measure is `sfumato.lab.audit.verdict.best_mixture`: an on-device baseline and plain images, mixed so that they leak
as much as the obfuscator was found to leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from sfumato.lab.audit.points import ENDS
from sfumato.lab.audit.schema import Point
from sfumato.lab.audit.verdict import PAYS_OFF_ABOVE, decimals, percent

PaysOff = Literal["yes", "no", "unclear", "unknown"]


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation; None for a single seed.
    """

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """An obfuscator, or one setting of it with several seeds, compared with the best mixture at its leakage.

    Attributes:
        name: for people.
        seeds: how many points it consists of.
        accuracy: in [0, 1].
        excess_leakage: over all images; a lower bound.
        mixture: accuracy of the best mixture at that leakage; None, like all that follows, where no on-device
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
    accuracy: Spread
    excess_leakage: Spread
    mixture: Spread | None
    gain: Spread | None
    mixing: str | None
    better: int
    pays_off: PaysOff
    budget: str
    attackers: tuple[str, ...]


def row(name: str, points: Sequence[Point]) -> Row:
    """Sum up the points of one setting.

    Args:
        name: for people.
        points: one for each seed, as `sfumato.lab.audit.points.points_of` makes them.
    """
    accuracies = [point.accuracy for point in points]
    mixtures = [point.mixture for point in points if point.mixture is not None]
    gains = [a - m for a, m in zip(accuracies, mixtures, strict=True)] if len(mixtures) == len(points) else []
    better = sum(gain >= PAYS_OFF_ABOVE for gain in gains)
    pays_off: PaysOff = "unknown"
    if gains:
        pays_off = "yes" if better == len(gains) else "no" if fmean(gains) < PAYS_OFF_ABOVE else "unclear"
    return Row(
        name=name,
        seeds=len(points),
        accuracy=_spread(accuracies),
        excess_leakage=_spread([point.excess_leakage for point in points if point.excess_leakage is not None]),
        mixture=_spread(mixtures) if gains else None,
        gain=_spread(gains) if gains else None,
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
    reached = (
        f"{of.name}: {spoken(of.accuracy)} of the images are classified correctly at an excess leakage of at least "
        f"{decimals(of.excess_leakage.mean, 2)}"
    )
    if of.mixture is None or of.gain is None:
        return f"{reached}; whether that pays off is not known."
    mixed = percent(of.mixture.mean)
    if of.pays_off == "yes":
        return f"{reached}: more than the {mixed} of {of.mixing}, which leaks as much as was found here."
    if of.pays_off == "unclear":
        return f"{reached}; {of.mixing} gives {mixed}, and {of.better} of {of.seeds} seeds do better."
    return f"{reached}: {of.mixing} leaks as much and gives {mixed}, so a user is better off without it."


def verdict(rows: Sequence[Row]) -> tuple[PaysOff, list[str]]:
    """Say whether offloading pays off at any of these rows.

    Args:
        rows: at least one.

    Returns:
        Whether it does, and sentences: the reason, and what it rests on.
    """
    known = [of for of in rows if of.gain is not None]
    if not known:
        return "unknown", [
            "Whether offloading pays off is not known: no on-device baseline was measured. What is lost without one "
            "are the line and the curve that an obfuscator has to lie above."
        ]
    best = max(known, key=_gain)
    pays_off = next((found for found in ("yes", "unclear") if any(of.pays_off == found for of in known)), "no")
    among = f"{len(known)} points" if len(known) > 1 else "one point"
    distance = f"{100 * abs(_gain(best)):.1f} percentage points"
    if pays_off == "yes":
        best = max((of for of in known if of.pays_off == "yes"), key=_gain)
        count = sum(of.pays_off == "yes" for of in known)
        why = (
            f"Offloading pays off at {count} of {among}, as far as these attackers got. {sentence(best)} "
            f"That is {100 * _gain(best):.1f} percentage points more, the most of all."
        )
        return "yes", [why, _rests_on(known)]
    if pays_off == "unclear":
        best = max((of for of in known if of.pays_off == "unclear"), key=_gain)
        return "unclear", [f"It is not clear whether offloading pays off. {sentence(best)}", _rests_on(known)]
    side = "below" if _gain(best) < 0 else "above, which is chance,"
    return "no", [
        f"Offloading does not pay off at any of {among}: {best.name} comes closest, {distance} {side} what is reached "
        f"at its leakage by {best.mixing}.",
        _rests_on(known),
    ]


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


def _gain(of: Row) -> float:
    assert of.gain is not None
    return of.gain.mean


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def spoken(figure: Spread) -> str:
    """Return a share with its standard deviation, if it has one."""
    return percent(figure.mean) + ("" if figure.std is None else f" (standard deviation {100 * figure.std:.1f} points)")
