"""Whether offloading is worth it: points of the frontier beside what anybody gets without an obfuscator, in words.

The measure is `sfumato.lab.audit.verdict.best_mixture`: a classifier on the device and plain images, mixed so that
they leak as much as the obfuscator was found to leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from sfumato.lab.audit.verdict import WORTH_ABOVE, decimals, percent
from sfumato.lab.report.points import ENDS, Point

Worth = Literal["yes", "no", "unclear", "unknown"]


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
    """An obfuscator, or one setting of it with several seeds, beside the best mixture at its leakage.

    Attributes:
        name: as people read it.
        seeds: how many points it consists of.
        accuracy: in [0, 1].
        excess_leakage: over all images; a lower bound.
        mixture: accuracy of the best mixture at that leakage; None, as is all that follows, where no classifier on the
            device was measured.
        gain: accuracy above the mixture's, seed by seed.
        mixing: what the mixture does.
        better: how many seeds gain more than `WORTH_ABOVE`.
        worth: "yes" if every seed does, "no" if their mean does not, "unclear" in between.
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
    worth: Worth
    budget: str
    attackers: tuple[str, ...]


def row(name: str, points: Sequence[Point]) -> Row:
    """Sums up the points of one setting.

    Args:
        name: as people read it.
        points: one for each seed, as `sfumato.lab.report.points.points_of` makes them.
    """
    accuracies = [float(point["accuracy"]) for point in points]
    mixtures = [float(point["mixture"]) for point in points if point.get("mixture") is not None]
    gains = [a - m for a, m in zip(accuracies, mixtures, strict=False)] if len(mixtures) == len(points) else []
    better = sum(gain >= WORTH_ABOVE for gain in gains)
    worth: Worth = "unknown"
    if gains:
        worth = "yes" if better == len(gains) else "no" if fmean(gains) < WORTH_ABOVE else "unclear"
    return Row(
        name=name,
        seeds=len(points),
        accuracy=_spread(accuracies),
        excess_leakage=_spread([float(point["excess_leakage"]) for point in points]),
        mixture=_spread(mixtures) if gains else None,
        gain=_spread(gains) if gains else None,
        mixing=str(points[0]["mixing"]) if gains else None,
        better=better,
        worth=worth,
        budget=str(points[0]["budget"]),
        attackers=tuple(str(point["best_attacker"]) for point in points),
    )


def rows_of(points: Sequence[Point]) -> list[Row]:
    """One row for each audited obfuscator among points; the ends have none."""
    return [row(str(point["name"]), [point]) for point in points if point["role"] not in ENDS]


def sentence(of: Row) -> str:
    """What a row is worth, in words."""
    reached = (
        f"{of.name}: {spoken(of.accuracy)} of the images are answered right at an excess leakage of at least "
        f"{decimals(of.excess_leakage.mean, 2)}"
    )
    if of.mixture is None or of.gain is None:
        return f"{reached}; whether that is worth it is not known."
    mixed = percent(of.mixture.mean)
    if of.worth == "yes":
        return f"{reached}: more than the {mixed} of {of.mixing}, which leaks as much as was found here."
    if of.worth == "unclear":
        return f"{reached}; {of.mixing} gives {mixed}, and {of.better} of {of.seeds} seeds do better."
    return f"{reached}: {of.mixing} leaks as much and gives {mixed}, so a user is better off without it."


def verdict(rows: Sequence[Row]) -> tuple[Worth, list[str]]:
    """Whether offloading is worth it at any of these rows.

    Args:
        rows: at least one.

    Returns:
        The answer, and sentences: the answer with its reason, and what it rests on.
    """
    known = [of for of in rows if of.gain is not None]
    if not known:
        return "unknown", [
            "Whether offloading is worth it is not known: no classifier on the device was measured. What is lost "
            "without one are the line and the curve that an obfuscator has to lie above."
        ]
    best = max(known, key=_gain)
    worth = next((answer for answer in ("yes", "unclear") if any(of.worth == answer for of in known)), "no")
    among = f"{len(known)} points" if len(known) > 1 else "one point"
    distance = f"{100 * abs(_gain(best)):.1f} percentage points"
    if worth == "yes":
        best = max((of for of in known if of.worth == "yes"), key=_gain)
        count = sum(of.worth == "yes" for of in known)
        answer = (
            f"Offloading is worth it at {count} of {among}, as far as these attackers got. {sentence(best)} "
            f"That is {100 * _gain(best):.1f} percentage points more, the most of all."
        )
        return "yes", [answer, _rests_on(known)]
    if worth == "unclear":
        best = max((of for of in known if of.worth == "unclear"), key=_gain)
        return "unclear", [f"It is not clear whether offloading is worth it. {sentence(best)}", _rests_on(known)]
    side = "below" if _gain(best) < 0 else "above, which is chance,"
    return "no", [
        f"Offloading is not worth it at any of {among}: {best.name} comes closest, {distance} {side} what anybody "
        f"gets at its leakage by {best.mixing}.",
        _rests_on(known),
    ]


def _rests_on(rows: Sequence[Row]) -> str:
    budgets = ", ".join(f'"{name}"' for name in dict.fromkeys(of.budget for of in rows))
    seeds = sorted({of.seeds for of in rows})
    parts = [
        f"The leakage is what attackers of the budget {budgets} found, a lower bound: what more they find raises what "
        "has to be beaten"
    ]
    if seeds == [1]:
        parts.append("each point is one training, so chance between trainings is not counted")
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
    """A share with its standard deviation, if it has one."""
    return percent(figure.mean) + ("" if figure.std is None else f" (standard deviation {100 * figure.std:.1f} points)")
