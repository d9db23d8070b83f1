"""What an audit found, in one word and three sentences that a sceptic accepts.

A leak that was found stands, whatever else went wrong: it is a lower bound. That nothing was found counts
only if the audit could have found it: its controls passed, its strongest attackers did not fail, and they
had learned all that they could.

Source: the questions that an attack must answer about itself, Carlini et al. 2019 (On Evaluating Adversarial
Robustness) and Croce and Hein 2020 (AutoAttack).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.evaluation.measures import RECONSTRUCTED_BELOW

SCHEMA = "sfumato.audit/1"

LEAKS_ABOVE = 0.05
"""Excess leakage above which reconstructed images show more than the label tells.

A convention of this project: one twentieth of the way from the class mean to the image. On CIFAR-10 a single bit
beyond the label is worth 0.18; the class mean's own sampling error, from 5,000 images a class, 0.0002.
"""
IDENTIFIES_ABOVE = 2.0
"""An attacker identifies images if the lower end of the interval is more than this many times chance."""
TELLS_ABOVE = 0.05
"""An attacker tells an attribute if the lower end of the interval is more than this above chance."""
WORTH_ABOVE = 0.001
"""What an obfuscator must gain over mixing both ends to be worth it: ten images in 10,000 are chance."""
BROKEN_ABOVE = 1.2
"""A best attacker whose error is more than this many times the class mean's is broken, not beaten.

The mean training image, which takes no attack at all, stands at 1.08 on CIFAR-10.
"""

WHO: dict[str, str] = {
    Threat.PAIRS: "holds {pairs}images beside what travelled for them",
    Threat.WHITE_BOX: "has the obfuscator itself and makes pairs with it from {pairs}public images",
    Threat.SHADOW: "knows only the recipe and made an obfuscator of his own from {pairs}images",
    Threat.OTHER_DATA: "holds {pairs}images of another kind beside what travelled for them",
    Threat.CLOUD: "runs the cloud, has the obfuscator and reads the classifier's inner features",
    Threat.NO_PAIRS: "overheard what travelled and has other images of the same kind, but no pair",
}
"""What an eavesdropper has under each threat model, in plain words."""

Finding = Literal["leaks", "inconclusive", "withstood"]


@dataclass(frozen=True)
class Verdict:
    """What is read first.

    Attributes:
        finding: "leaks": more than the label was reconstructed, found or told. "withstood": these attackers at this
            budget reconstructed no more than the label tells; others may. "inconclusive": nothing was found, by an
            audit that does not show that it would have found something.
        sentences: what an eavesdropper gets; what that is worth beside the alternatives, with its gate too if there is
            one; what the audit can say.
    """

    finding: Finding
    sentences: tuple[str, str, str]


def decide(audit: dict[str, Any]) -> Verdict:
    """Sums an audit up.

    Args:
        audit: the content of `audit.json`, schema `SCHEMA`; `verdict` is not read.
    """
    doubts = find_doubts(audit)
    finding: Finding = "leaks" if _leaks(audit) else "inconclusive" if doubts else "withstood"
    worth = " ".join([_what_it_is_worth(audit), *_what_the_gate_changes(audit)])
    return Verdict(finding, (_what_he_gets(audit, finding, doubts), worth, _limits(audit, doubts)))


def find_doubts(audit: dict[str, Any]) -> list[str]:
    """Why a stronger attacker than the audit's own may exist: clauses, none if nothing speaks for it.

    Args:
        audit: see `decide`.
    """
    doubts = []
    controls = audit.get("controls") or []
    if not controls:
        doubts.append("no control was run")
    for control in controls:
        if control["passed"] is None:
            doubts.append(f'the control "{control["name"]}" was not run')
        elif not control["passed"]:
            how = f"measured {control['measured']}, needed {control['needed']}"
            doubts.append(f'the control "{control["name"]}" failed ({how})')
    best = audit.get("best")
    if not best or _number(best.get("excess_leakage")) is None:
        return [*doubts, "no attacker finished"]
    if best["mse"] > BROKEN_ABOVE * audit["class_mean_mse"]:
        doubts.append("even the best attacker does far worse than the class mean, as a broken one does")
    keys = ("attacker", "threat", "pairs")
    mine = [t for t in done(audit) if all(t.get(key) == best.get(key) for key in keys)]
    if best["mse"] >= RECONSTRUCTED_BELOW and any(trial.get("flattened") is False for trial in mine):
        doubts.append(f"the best attacker, {best['attacker']}, was still learning")
    finished = {(trial["attacker"], trial["threat"]) for trial in done(audit)}
    lost = {
        f"{t['attacker']} ({t['threat']})"
        for t in audit["trials"]
        if t["status"] == "failed"
        and (t["attacker"] == best["attacker"] or (t["attacker"], t["threat"]) not in finished)
    }
    if lost:
        doubts.append(f"attackers failed that may be the strongest: {', '.join(sorted(lost))}")
    return doubts


def done(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that came to an end with figures."""
    return [trial for trial in audit["trials"] if trial["status"] == "done"]


def count_by_status(audit: dict[str, Any]) -> dict[str, int]:
    """How many trials were done, failed, and were not run."""
    return {status: sum(t["status"] == status for t in audit["trials"]) for status in ("done", "failed", "not run")}


def identifies(row: dict[str, Any]) -> bool:
    """Whether a row of `identification` lies clearly above chance."""
    return bool(row["low"] > IDENTIFIES_ABOVE * row["chance"])


def tells(row: dict[str, Any]) -> bool:
    """Whether a row of `attributes` lies clearly above chance; of many values, such as who it is, see `identifies`."""
    return bool(row["low"] > min(row["chance"] + TELLS_ABOVE, row["chance"] * IDENTIFIES_ABOVE))


def hides(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """What an obfuscator hides of each label column and what not.

    Args:
        audit: see `decide`.

    Returns:
        The attacker's best row of each column, in their order, with further keys: "by_threat", threat model ->
        accuracy; "finding", "told", "not told", or "not shown" where he cannot even tell it from the plain image; and
        "kept", the share of what the plain image tells beyond the label that is still told, None where that is
        nothing.
    """
    rows = [row for row in audit.get("attributes") or [] if row.get("plain") is not None]
    found = []
    for name in dict.fromkeys(row["attribute"] for row in rows):
        mine = [row for row in rows if row["attribute"] == name]
        best = max(mine, key=lambda row: float(row["low"]))
        shown = tells({"low": best["plain"], "chance": best["chance"]})
        kept = (best["accuracy"] - best["chance"]) / (best["plain"] - best["chance"]) if shown else None
        finding = "told" if tells(best) else "not told" if shown else "not shown"
        by_threat = {row["threat"]: row["accuracy"] for row in mine}
        found.append(
            {**best, "by_threat": by_threat, "finding": finding, "kept": None if kept is None else max(kept, 0)}
        )
    return found


def mixed_accuracy(excess_leakage: float, *, local: float, plain: float) -> float:
    """The accuracy of sending some images as they are and answering the others on the device.

    Args:
        excess_leakage: over all images, which is the share that is sent as it is; in [0, 1].
        local: accuracy of the classifier on the device, in [0, 1].
        plain: accuracy of the classifier in the cloud on plain images, in [0, 1].
    """
    return local + min(excess_leakage, 1.0) * (plain - local)


def best_mixture(excess_leakage: float, utility: dict[str, Any]) -> tuple[float, str]:
    """What anybody gets without an obfuscator at a leakage, from a classifier on the device and plain images.

    Args:
        excess_leakage: over all images, in [0, 1].
        utility: of an `audit.json`, with `accuracy_local`.

    Returns:
        The accuracy of the better of both mixtures, and what it does, in words: images are sent at random, or those
        that the device is least sure of.
    """
    local, plain = utility["accuracy_local"], utility["accuracy_plain"]
    mixed = mixed_accuracy(excess_leakage, local=local, plain=plain)
    rows = sorted(utility.get("gated_plain") or [], key=lambda row: float(row["excess_leakage"]))
    ends = [(0.0, local), *((row["excess_leakage"], row["accuracy"]) for row in rows), (1.0, plain)]
    gated = float(np.interp(excess_leakage, [end[0] for end in ends], [end[1] for end in ends]))
    if gated > mixed:
        return gated, "sending as they are some images that the device is least sure of"
    share = percent(min(excess_leakage, 1.0))
    return mixed, f"sending {share} of the images as they are and answering the others on the device"


def percent(share: float | None) -> str:
    """0.726 -> "72.6 %"; small shares keep two digits; a dash for None."""
    value = _number(share)
    if value is None:
        return DASH
    return f"{100 * value:.1f} %" if value >= 0.001 or value == 0 else f"{100 * value:.2g} %"


def decimals(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a dash for None."""
    number = _number(value)
    return DASH if number is None else f"{number:.{digits}f}"


DASH = "\N{EN DASH}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _leaks(audit: dict[str, Any]) -> bool:
    excess = [_number(trial.get("excess_leakage")) for trial in [audit.get("best") or {}, *done(audit)]]
    return (
        any(value is not None and value > LEAKS_ABOVE for value in excess)
        or any(identifies(row) for row in audit.get("identification") or [])
        or any(tells(row) for row in audit.get("attributes") or [])
    )


def _what_he_gets(audit: dict[str, Any], finding: Finding, doubts: list[str]) -> str:
    best = audit.get("best")
    if best and _number(best.get("excess_leakage")) is not None:
        pairs = f"{best['pairs']:,} " if best.get("pairs") else ""
        views = max((t for t in done(audit) if t.get("views", 1) > 1), key=lambda t: t["excess_leakage"], default=None)
        who = WHO.get(best["threat"], f'attacks under "{best["threat"]}"').format(pairs=pairs)
        figures = (
            f"MSE {decimals(best['mse'], 4)}, PSNR {decimals(best['psnr_db'], 2)} dB and SSIM "
            f"{decimals(best['ssim'], 3)} (attacker: {best['attacker']}), where the class mean, which the label alone "
            f"gives, has {_class_mean(audit, best)}: an excess leakage of at least "
            f"{decimals(best['excess_leakage'], 2)} (0: only the label leaks, 1: the image)"
        )
        if views is not None:
            figures += f", and of {decimals(views['excess_leakage'], 2)} if an image is sent {views['views']} times"
        reconstructed = f"an eavesdropper who {who} reconstructs images with {figures}"
    else:
        reconstructed = "no attacker that reconstructs images finished"
    opening = {
        "leaks": "",
        "inconclusive": "No attacker got clearly more than the label tells, which does not show that none can: ",
        "withstood": "These attackers at this budget reconstructed hardly more than the label tells; others may: ",
    }[finding]
    sentence = "; ".join([opening + reconstructed, *_highlights(audit)])
    return sentence[0].upper() + sentence[1:] + "."


def _class_mean(audit: dict[str, Any], best: dict[str, Any]) -> str:
    """The class mean's figures, on the images that the best attacker was measured on."""
    mse, count = audit["class_mean_mse"], best.get("test_images")
    if count and count < audit["data"]["test_images"] and best["excess_leakage"] > 0:
        return f"{decimals(best['mse'] / (1 - best['excess_leakage']), 4)} on the same {count:,} images"
    for row in audit.get("references") or []:
        if math.isclose(row["mse"], mse, rel_tol=1e-6):
            return f"{decimals(mse, 4)}, {decimals(row['psnr_db'], 2)} dB and {decimals(row['ssim'], 3)}"
    return decimals(mse, 4)


def _highlights(audit: dict[str, Any]) -> list[str]:
    found = []
    if rows := audit.get("identification"):
        row = max(rows, key=lambda row: (identifies(row), row["low"] / row["chance"]))
        linked = row["measure"] == "linkage"
        what = f"what travelled for an image ({row['attacker']})" if linked else "the right image"
        rate = f"{percent(row['top1'])} of cases (chance {percent(row['chance'])})"
        found.append(f"{what} is found among {row['candidates']:,} of its class in {rate}")
    if columns := hides(audit):
        told = [
            f'"{row["attribute"]}" in {percent(row["accuracy"])} of cases (from the label alone '
            f"{percent(row['chance'])}, from the plain image {percent(row['plain'])})"
            for row in columns
            if row["finding"] == "told"
        ]
        found.append(f"of {len(columns)} label columns {len(told)} are told: {', '.join(told) or 'none'}")
        if missed := [f'"{row["attribute"]}"' for row in columns if row["finding"] == "not shown"]:
            found.append(f"of {', '.join(missed)} nothing is shown, as not even the plain image gave it away")
    elif rows := audit.get("attributes"):
        row = max(rows, key=lambda row: (tells(row), row["low"] - row["chance"]))
        rate = f"{percent(row['accuracy'])} of cases (chance {percent(row['chance'])})"
        found.append(f'"{row["attribute"]}", which the label does not tell, is told right in {rate}')
    return found


def _what_it_is_worth(audit: dict[str, Any]) -> str:
    utility = audit.get("utility")
    if not utility:
        return "No classifier for these images' classes was given, so this audit cannot say what the leakage buys."
    accuracy, plain, local = (utility.get(f"accuracy_{name}") for name in ("obfuscated", "plain", "local"))
    beside = (
        f"In return the cloud answers {percent(accuracy)} of the images right, beside {percent(plain)} if they were "
        "sent as they are"
    )
    if local is None:
        return (
            f"{beside}; a classifier of the obfuscator's size on the device, which reveals its label alone, was not "
            "measured, so it is not known whether sending anything is worth it."
        )
    beside += f" and {percent(local)} by a small classifier that stays on the device"
    if accuracy <= local:
        return f"{beside}: the device alone answers no worse and reveals only its label; nothing speaks for sending."
    excess = _number((audit.get("best") or {}).get("excess_leakage"))
    if excess is None:
        return f"{beside}."
    mixed, mixing = best_mixture(excess, utility)
    if accuracy < mixed + WORTH_ABOVE:
        return f"{beside}: {mixing} leaks as much and gives {percent(mixed)}, so a user is better off without it."
    return f"{beside}: more than the {percent(mixed)} of {mixing}, which leaks as much as was found here."


def _what_the_gate_changes(audit: dict[str, Any]) -> list[str]:
    gate = audit.get("gate")
    if not gate:
        return []
    sentence = f"With its gate, {percent(gate['offload_rate'])} of the images leave the device"
    if gate["accuracy_gated"] is not None:
        sentence += f" and {percent(gate['accuracy_gated'])} of all are answered right"
        sentence += f" ({percent(gate['accuracy_device'])} if the device answers all by itself)"
    if gate["excess_leakage_sent"] is not None:
        leakage = [decimals(gate[f"excess_leakage_{over}"], 2) for over in ("sent", "mean")]
        sentence += f"; the excess leakage is at least {leakage[0]} over those sent and {leakage[1]} over all"
        utility = audit.get("utility") or {}
        if gate["accuracy_gated"] is not None and utility.get("accuracy_local") is not None:
            mixed, mixing = best_mixture(gate["excess_leakage_mean"], utility)
            sentence += f", where {mixing} gives {percent(mixed)}"
    return [sentence + "."]


def _limits(audit: dict[str, Any], doubts: list[str]) -> str:
    trials = audit["trials"]
    count = count_by_status(audit)
    seeds = len({trial["seed"] for trial in done(audit)})
    how = "one seed" if seeds == 1 else f"one seed, the best with {seeds}"
    controls = audit.get("controls") or []
    passed = sum(control["passed"] is True for control in controls)
    budget = audit["budget"]
    parts = [
        f'At the budget "{budget["name"]}" ({budget["says"].rstrip(".")}) {count["done"]} of {len(trials)} trials were '
        f"done with {how}, {count['failed']} failed, {count['not run']} not run",
        f"{passed} of {len(controls)} controls passed",
    ]
    certificate = audit.get("certificate")
    if certificate:
        bits = decimals(certificate["rate_bits"], 1)
        parts.append(f"a certificate says that at most {bits} bits about an image pass, if its assumptions hold")
    else:
        parts.append("there is no certificate, so attackers with more time, pairs or ideas may get more")
    if doubts:
        how = "how much more leaks" if _leaks(audit) else "whether it leaks"
        parts.append(f"and because {', and '.join(doubts)}, this audit is inconclusive about {how}")
    return "; ".join(parts) + "."
