"""The page's first table: what the paper says, what was found here, and whether it holds. Needs no torch."""

from __future__ import annotations

from reproduction import constants
from reproduction.claim_sections import NEGLIGIBLE, verdict_counts
from reproduction.markdown import percent, points, ratio, table
from reproduction.schema import Optimum, Table1, Table3

_TOLERANCE = 0.005
"""A loss of accuracy this much larger than the paper's still counts as the paper's."""
HOLDS, HOLDS_NOT, MISSED = "holds", "does not hold", "not asked in the paper"
Row = tuple[str, str, str]


def summary(table1: Table1 | None, optima: dict[str, Optimum], table3: Table3 | None, baseline: Table1 | None) -> str:
    """Return the table, with the rows that there are results for; empty without any.

    Args:
        table1: at the paper's size.
        optima: by size.
        table3: at the size with the most networks.
        baseline: with an on-device baseline.
    """
    rows = [*_accuracy_and_cost(table1), *_claim(next(iter(optima.values()), None)), *_attacker(optima)]
    rows += [*_transfer(table3), *_on_device(baseline)]
    if not rows:
        return ""
    return table(("the paper", "found here", ""), rows)


def _accuracy_and_cost(found: Table1 | None) -> list[Row]:
    ours = found.rows[0] if found and found.rows else None
    theirs = constants.TABLE_1.get(str(ours.paper)) if ours else None
    if ours is None or theirs is None:
        return []
    loss, their_loss = ours.accuracy_obfuscated - ours.accuracy_plain, theirs.obfuscated - theirs.plain
    begun = ours.trained.obfuscator.begun
    epochs = ours.trained.obfuscator.epochs + (begun.epochs if begun else 0)
    accuracy = (
        f"{ours.paper} classifies obfuscated images nearly as well as plain ones: {percent(theirs.plain)} becomes "
        f"{percent(theirs.obfuscated)}, {points(their_loss)} points",
        f"{percent(ours.accuracy_plain)} becomes {percent(ours.accuracy_obfuscated)}, {points(loss)} points, after "
        f"{epochs} epochs instead of {constants.EPOCHS}",
        HOLDS if loss > their_loss - _TOLERANCE else "not reached in so few epochs",
    )
    same = abs(ours.overhead_macs_paper_order - theirs.macs) < 5e-4 and abs(ours.overhead_params - theirs.params) < 5e-4
    cost = (
        f"The obfuscator costs {percent(theirs.macs)} of its multiply-accumulates and {percent(theirs.params)} of its "
        "parameters",
        f"{percent(ours.overhead_macs_paper_order)} and {percent(ours.overhead_params)}; {percent(ours.overhead_macs)} "
        "with the operations in another order",
        HOLDS if same else HOLDS_NOT,
    )
    return [accuracy, cost]


def _claim(found: Optimum | None) -> list[Row]:
    row = found.rows[0] if found else None
    if row is None or row.audit is None:
        return []
    audit = row.audit
    leaks = max(audit.excess_leakage, 1 - row.joint_mse / audit.class_mean_mse)
    again = audit.reidentified
    said = (
        f"{row.paper or row.obfuscator}: an excess leakage of at least {ratio(leaks)} (0: only the label, 1: the image)"
    )
    if again:
        said += f"; re-identified among {again.candidates} of its class in {percent(again.top1)} of cases"
    return [("An obfuscated image cannot be reconstructed", said, HOLDS if leaks < NEGLIGIBLE else HOLDS_NOT)]


def _attacker(optima: dict[str, Optimum]) -> list[Row]:
    counted = {size: verdict_counts(found) for size, found in optima.items()}
    if not any(audited for _, audited in counted.values()):
        return []
    said = " and ".join(f"for {worse} of {audited} of size `{size}`" for size, (worse, audited) in counted.items())
    return [
        (
            "The jointly trained deobfuscator stands for all attackers",
            f"An attacker trained afterwards has a lower error {said}",
            HOLDS_NOT if any(worse for worse, _ in counted.values()) else HOLDS,
        )
    ]


def _transfer(found: Table3 | None) -> list[Row]:
    if found is None or len(found.names) < 2:
        return []
    own = [row[place] for place, row in enumerate(found.accuracy)]
    others = [value for place, row in enumerate(found.accuracy) for at, value in enumerate(row) if at != place]
    theirs = [value for place, row in enumerate(_paper_rows()) for at, value in enumerate(row) if at != place]
    serves = all(row[place] == max(row) for place, row in enumerate(found.accuracy))
    return [
        (
            "An obfuscator serves the classifier that it was trained for: on others its images reach "
            f"{percent(min(theirs))} to {percent(max(theirs))}",
            f"Size `{found.size}`: {percent(min(own))} to {percent(max(own))} on its own, {percent(min(others))} to "
            f"{percent(max(others))} on others",
            HOLDS if serves else HOLDS_NOT,
        )
    ]


def _paper_rows() -> list[tuple[float, ...]]:
    return [constants.TABLE_3[name] for name in constants.NETS]


def _on_device(found: Table1 | None) -> list[Row]:
    if found is None or found.on_device is None or not found.rows:
        return []
    return [
        (
            "What would a classifier of the obfuscator's own cost reach on the device alone?",
            f"Size `{found.size}`: {percent(found.on_device.accuracy)}; the first obfuscator has "
            f"{percent(found.rows[0].accuracy_obfuscated)}",
            MISSED,
        )
    ]
