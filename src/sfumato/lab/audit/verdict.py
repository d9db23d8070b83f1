"""What an audit found, in one word and three sentences that a sceptic accepts.

A leak that was found is a lower bound, whatever else failed. That nothing was found counts only if the audit could have
found it: its sanity checks passed, its strongest attackers did not fail, and they had learned all that they could.

Source: the questions that an attack must answer about itself, Carlini et al. 2019 (On Evaluating Adversarial
Robustness) and Croce and Hein 2020 (AutoAttack).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sfumato.lab.attacks.extraction import RECOGNISABLE_ABOVE, memorises
from sfumato.lab.attacks.identification import OF_ATTACKER, Identification
from sfumato.lab.attacks.image_attributes import Attribute
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.schema import Alternatives, AuditResult, DoneTrial, Finding, Verdict
from sfumato.lab.evaluation.measures import RECONSTRUCTED_BELOW

LEAKS_ABOVE = 0.05
"""Excess leakage above which reconstructed images show more than the label gives.

A convention of this project: one twentieth of the way from the class mean to the image. On CIFAR-10 a single bit
beyond the label gives 0.18; the class mean's own sampling error, from 5,000 images a class, is 0.0002.
"""
IDENTIFIES_ABOVE = 2.0
"""An attacker re-identifies images if the lower end of the interval is more than this many times chance."""
INFERS_ABOVE = 0.05
"""An attacker infers an attribute if the lower end of the interval is more than this above chance."""
PAYS_OFF_ABOVE = 0.001
"""What an obfuscator must gain over the best mixture to pay off: ten images in 10,000 are chance."""
CLEARER_ABOVE = 0.03
"""By how much another attacker's SSIM must be higher to be named: three standard errors of 300 images."""
BROKEN_ABOVE = 1.2
"""A best attacker whose error is more than this many times the class mean's is broken, not beaten.

The mean training image, which takes no attack at all, has 1.08 on CIFAR-10.
"""

WHO: Mapping[Threat, str] = {
    Threat.PAIRS: "holds {pairs}images and the payload for them",
    Threat.WHITE_BOX: "has the obfuscator itself and makes pairs with it from {pairs}public images",
    Threat.SHADOW: "knows only the recipe and trained an obfuscator of its own on {pairs}images",
    Threat.OTHER_DATA: "holds {pairs}images of another kind and the payload for them",
    Threat.CLOUD: "runs the cloud, has the obfuscator and reads the classifier's inner features",
    Threat.NO_PAIRS: "intercepted payloads and has other images of the same kind, but no pair",
}
"""What an eavesdropper has under each threat model, in plain words."""

DASH = "\N{EN DASH}"
UNDECIDED = Verdict(finding="inconclusive", sentences=("", "", ""))
"""Of an audit whose verdict is not made yet."""


@dataclass(frozen=True)
class Column:
    """What leaks of one label column.

    Attributes:
        best: the row of the attacker that did best on images held out, or in audits of early versions on test images.
        by_threat: threat model -> accuracy.
        finding: "inferred", "not inferred", or "not shown" where the attacker fails even on the plain image.
        remaining: the share of what the plain image gives beyond the label that is still inferred; None where that is
            nothing.
    """

    best: Attribute
    by_threat: dict[Threat, float]
    finding: Literal["inferred", "not inferred", "not shown"]
    remaining: float | None

    @property
    def name(self) -> str:
        """Of the column."""
        return self.best.attribute


def decide(audit: AuditResult) -> Verdict:
    """Sum an audit up; its `verdict` and `frontier` are not read."""
    doubts = find_doubts(audit)
    finding: Finding = "leaks" if _leaks(audit) else "inconclusive" if doubts else "withstood"
    trade_off = " ".join([_trade_off(audit), *_with_the_gate(audit)])
    leaks = " ".join([_what_leaks(audit, finding), *_extracted(audit)])
    return Verdict(finding=finding, sentences=(leaks, trade_off, _limits(audit, doubts)))


def find_doubts(audit: AuditResult) -> list[str]:
    """Return why a stronger attacker than the audit's own may exist: clauses, none if nothing says so."""
    doubts = [] if audit.sanity_checks else ["no sanity check was run"]
    for check in audit.sanity_checks:
        if check.passed is None:
            doubts.append(f'the sanity check "{check.name}" was not run')
        elif not check.passed:
            doubts.append(f'the sanity check "{check.name}" failed (measured {check.measured}, needed {check.needed})')
    best = audit.best
    if best is None:
        return [*doubts, "no attacker finished"]
    if best.mse > BROKEN_ABOVE * audit.class_mean_mse:
        doubts.append("even the best attacker does far worse than the class mean, as a broken one does")
    alike = [t for t in audit.done if (t.attacker, t.threat, t.pairs) == (best.attacker, best.threat, best.pairs)]
    if best.mse >= RECONSTRUCTED_BELOW and any(trial.flattened is False for trial in alike):
        doubts.append(f"the best attacker, {best.attacker}, was still learning")
    finished = {(trial.attacker, trial.threat) for trial in audit.done}
    failed = {(trial.attacker, trial.threat) for trial in audit.trials if trial.status == "failed"}
    lost = {f"{who} ({threat})" for who, threat in failed if who == best.attacker or (who, threat) not in finished}
    if lost:
        doubts.append(f"attackers failed that may be the strongest: {', '.join(sorted(lost))}")
    return doubts


def reidentifies(row: Identification) -> bool:
    """Whether the interval lies clearly above chance."""
    return row.low > IDENTIFIES_ABOVE * row.chance


def infers(low: float, chance: float) -> bool:
    """Whether an attribute's interval lies clearly above chance; for many values, such as identity, `reidentifies`."""
    return low > min(chance + INFERS_ABOVE, chance * IDENTIFIES_ABOVE)


def label_columns(audit: AuditResult) -> list[Column]:
    """Return what leaks of each label column, in their order."""
    by_name: dict[str, list[Attribute]] = {}
    for row in audit.attributes:
        if row.plain is not None:
            by_name.setdefault(row.attribute, []).append(row)
    found = []
    for rows in by_name.values():
        best = max(rows, key=lambda row: row.low if row.held_out is None else row.held_out)
        plain = best.plain or 0.0
        shown = infers(plain, best.chance)
        found.append(
            Column(
                best=best,
                by_threat={row.threat: row.accuracy for row in rows},
                finding="inferred" if infers(best.low, best.chance) else "not inferred" if shown else "not shown",
                remaining=max((best.accuracy - best.chance) / (plain - best.chance), 0.0) if shown else None,
            )
        )
    return found


def best_mixture(excess_leakage: float, alternatives: Alternatives) -> tuple[float, str] | None:
    """Return what is reached without an obfuscator at a leakage, from an on-device baseline and plain images.

    Returns:
        The accuracy of the better of two mixtures, and what it does, in words: images are sent at random, or those
        that the device is least sure of. None without an on-device baseline.
    """
    local, plain = alternatives.accuracy_local, alternatives.accuracy_plain
    if local is None:
        return None
    sent = min(excess_leakage, 1.0)
    mixed = local + sent * (plain - local)
    rows = sorted(alternatives.gated_plain, key=lambda row: row.excess_leakage)
    ends = [(0.0, local), *((row.excess_leakage, row.accuracy) for row in rows), (1.0, plain)]
    gated = float(np.interp(excess_leakage, [end[0] for end in ends], [end[1] for end in ends]))
    if gated > mixed:
        return gated, "sending in the clear some images that the device is least sure of"
    return mixed, f"sending {percent(sent)} of the images in the clear and handling the others on-device"


def compared(mixed: float, mixing: str, *, better: bool) -> str:
    """Say whether an obfuscator does better than the best mixture, which reaches the accuracy `mixed`."""
    if better:
        return f"more than the {percent(mixed)} of {mixing}, which leaks as much as was found here"
    return f"{mixing} leaks as much and gives {percent(mixed)}, so a user is better off without it"


def percent(share: float | None) -> str:
    """0.726 -> "72.6 %"; small shares keep two digits; a dash for None."""
    if share is None or not math.isfinite(share):
        return DASH
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"


def decimals(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; a dash for None."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _leaks(audit: AuditResult) -> bool:
    trials = [*([audit.best] if audit.best else []), *audit.done]
    return (
        any(trial.excess_leakage > LEAKS_ABOVE for trial in trials)
        or any(reidentifies(row) for row in audit.identification)
        or any(infers(row.low, row.chance) for row in audit.attributes)
        or any(map(memorises, audit.extraction))
    )


def _what_leaks(audit: AuditResult, finding: Finding) -> str:
    reconstructed = "no attacker that reconstructs images finished"
    if (best := audit.best) is not None:
        who = WHO[best.threat].format(pairs=f"{best.pairs:,} " if best.pairs else "")
        reconstructed = (
            f"an eavesdropper who {who} reconstructs images with MSE {decimals(best.mse, 4)}, PSNR "
            f"{decimals(best.psnr_db, 2)} dB and SSIM {decimals(best.ssim, 3)} (attacker: {best.attacker}), where the "
            f"class mean, which the label alone gives, has {_class_mean(audit, best)}: an excess leakage of at least "
            f"{decimals(best.excess_leakage, 2)} (0: only the label leaks, 1: the image)"
        )
        views = max((t for t in audit.done if t.views > 1), key=lambda t: t.excess_leakage, default=None)
        if views is not None:
            leakage = decimals(views.excess_leakage, 2)
            reconstructed += f", and of {leakage} if an image is sent {views.views} times"
        reconstructed += _clearest(audit, best)
    opening = {
        "leaks": "",
        "inconclusive": "No attacker got clearly more than the label gives, which does not show that none can: ",
        "withstood": "These attackers at this budget reconstructed hardly more than the label gives; others may: ",
    }[finding]
    sentence = "; ".join([opening + reconstructed, *_recognised(audit), *_reidentified(audit), *_inferred(audit)])
    return sentence[0].upper() + sentence[1:] + "."


def _clearest(audit: AuditResult, best: DoneTrial) -> str:
    """Name the attacker with the highest SSIM, if it is clearly another than that with the least error.

    A sampled image has about twice the error of the mean of all that are possible, and is sharper.
    """
    clearest = max((t for t in audit.done if t.views == 1), key=lambda trial: trial.ssim, default=best)
    if clearest.attacker == best.attacker or clearest.ssim <= best.ssim + CLEARER_ABOVE:
        return ""
    who = f"{clearest.attacker}, {clearest.threat}, on {clearest.test_images:,} images"
    return f"; the attacker with the highest SSIM, {decimals(clearest.ssim, 3)}, is another one ({who})"


def _class_mean(audit: AuditResult, best: DoneTrial) -> str:
    """The class mean's figures, on the images that the best attacker was measured on."""
    mse, count = audit.class_mean_mse, best.test_images
    if count < audit.data.test_images and best.excess_leakage > 0:
        return f"{decimals(best.mse / (1 - best.excess_leakage), 4)} on the same {count:,} images"
    for row in audit.references:
        if math.isclose(row.mse, mse, rel_tol=1e-6):
            return f"{decimals(mse, 4)}, {decimals(row.psnr_db, 2)} dB and {decimals(row.ssim, 3)}"
    return decimals(mse, 4)


def _reidentified(audit: AuditResult) -> list[str]:
    if not audit.identification:
        return []
    row = max(audit.identification, key=lambda row: (reidentifies(row), row.low / row.chance))
    what = f"the payload of an image ({row.attacker})" if row.measure == "linkage" else "the image"
    if row.attacker.startswith(OF_ATTACKER):
        what += f" (by the {row.attacker.removeprefix(OF_ATTACKER)})"
    rate = f"{percent(row.top1)} of cases (chance {percent(row.chance)})"
    others = "of its class" if row.classes == "one" else "images of all classes"
    return [f"{what} is re-identified among {row.candidates:,} {others} in {rate}"]


def most_recognised(audit: AuditResult) -> DoneTrial | None:
    """Return the trial whose reconstructions are most similar to the images in the evaluator's features."""
    judged = [trial for trial in audit.done if trial.recognition is not None and trial.views == 1]
    return max(judged, key=lambda t: t.recognition.feature_cosine if t.recognition else 0.0, default=None)


def _recognised(audit: AuditResult) -> list[str]:
    scale, trial = audit.recognition, most_recognised(audit)
    if scale is None or trial is None or trial.recognition is None:
        return []
    (label_only, image), found = scale.ends("feature_cosine") or (0.0, 1.0), trial.recognition
    similar = decimals(found.feature_cosine, 2)
    said = f"reconstructions ({trial.attacker}) are as similar as {similar} to the images"
    if found.feature_cosine <= label_only:
        said = (
            f"even the best reconstructions ({trial.attacker}), {similar}, are less similar than what the label gives"
        )
    ends = f"feature cosine; from the label alone {decimals(label_only, 2)}, the image itself {decimals(image, 2)}"
    return [f"to a classifier that no attacker had, {said} ({ends})"]


def _inferred(audit: AuditResult) -> list[str]:
    if columns := label_columns(audit):
        inferred = [
            f'"{column.name}" in {percent(column.best.accuracy)} of cases (from the label alone '
            f"{percent(column.best.chance)}, from the plain image {percent(column.best.plain)})"
            for column in columns
            if column.finding == "inferred"
        ]
        listed = ", ".join(inferred) or "none"
        found = [f"of {len(columns)} label columns {len(inferred)} are inferred: {listed}"]
        if missed := [f'"{column.name}"' for column in columns if column.finding == "not shown"]:
            found.append(f"of {', '.join(missed)} nothing is shown, as not even the plain image gave it away")
        return found
    if not audit.attributes:
        return []
    row = max(audit.attributes, key=lambda row: (infers(row.low, row.chance), row.low - row.chance))
    rate = f"{percent(row.accuracy)} of cases (chance {percent(row.chance)})"
    return [f'"{row.attribute}", which the label does not give, is inferred correctly in {rate}']


def _extracted(audit: AuditResult) -> list[str]:
    """What the files of the bundle show of the training images: the worst of them."""
    if not audit.extraction:
        return []
    row = max(audit.extraction, key=lambda row: (memorises(row), row.low, row.train_recognised))
    shown = (
        f"{row.train_recognised:,} of {row.train_images:,} training images are recognisable (correlation above "
        f"{RECOGNISABLE_ABOVE:g}) in what {row.file} {row.method}, and {row.test_recognised:,} of {row.test_images:,} "
        "test images, which it has never seen"
    )
    judged = "the bundle gives training images away" if memorises(row) else "not clearly more than resemble by chance"
    return [f"Of the training set, {shown}: {judged}."]


def _trade_off(audit: AuditResult) -> str:
    utility = audit.utility
    if utility is None:
        return "No classifier for these images' classes was given, so it is not known whether offloading pays off."
    obfuscated, local = utility.accuracy_obfuscated, utility.accuracy_local
    said = (
        f"In return the cloud classifies {percent(obfuscated)} of the images correctly, compared with "
        f"{percent(utility.accuracy_plain)} if they were sent in the clear"
    )
    if local is None:
        return (
            f"{said}; an on-device baseline of the obfuscator's size, which reveals its label alone, was not measured, "
            "so it is not known whether offloading pays off."
        )
    said += f" and {percent(local)} by a small classifier that runs on-device"
    if obfuscated <= local:
        return f"{said}: the device alone does no worse and reveals only its label; offloading does not pay off."
    mixture = None if audit.best is None else best_mixture(audit.best.excess_leakage, utility)
    if mixture is None:
        return f"{said}."
    return f"{said}: {compared(*mixture, better=obfuscated >= mixture[0] + PAYS_OFF_ABOVE)}."


def _with_the_gate(audit: AuditResult) -> list[str]:
    gate, mixture = audit.gate, None
    if gate is None:
        return []
    sentence = f"With its gate, {percent(gate.offload_rate)} of the images leave the device"
    if gate.accuracy_gated is not None:
        sentence += f" and {percent(gate.accuracy_gated)} of all are classified correctly"
        sentence += f" ({percent(gate.accuracy_device)} if the device handles all of them)"
    if gate.excess_leakage_sent is not None and gate.excess_leakage_mean is not None:
        sent, mean = decimals(gate.excess_leakage_sent, 2), decimals(gate.excess_leakage_mean, 2)
        sentence += f"; the excess leakage is at least {sent} over those sent and {mean} over all"
        if gate.accuracy_gated is not None and audit.utility is not None:
            mixture = best_mixture(gate.excess_leakage_mean, audit.utility)
    if mixture is not None:
        sentence += f", where {mixture[1]} gives {percent(mixture[0])}"
    return [sentence + "."]


def _limits(audit: AuditResult, doubts: list[str]) -> str:
    counts = audit.counts
    seeds = len({trial.seed for trial in audit.done})
    how = "one seed" if seeds == 1 else f"one seed, the best with {seeds}"
    passed = sum(check.passed is True for check in audit.sanity_checks)
    parts = [
        f'At the budget "{audit.budget.name}" ({audit.budget.description.rstrip(".")}) {counts["done"]} of '
        f"{len(audit.trials)} trials were done with {how}, {counts['failed']} failed, {counts['not run']} not run",
        f"{passed} of {len(audit.sanity_checks)} sanity checks of the attackers passed",
    ]
    if audit.certificate:
        bits = decimals(audit.certificate.rate_bits, 1)
        said = f"a certificate says that at most {bits} bits about an image pass, if its assumptions hold"
        if (code := audit.certificate.code) is not None:
            best = max((row for row in code.best if row.classes == "all"), key=lambda row: row.candidates)
            said += (
                f", and the best attacker that there can be re-identifies one of {best.candidates:,} test images in "
                f"exactly {percent(best.top1)} of cases"
            )
        parts.append(said)
    else:
        parts.append("there is no certificate, so attackers with more time, pairs or ideas may get more")
    if doubts:
        how = "how much more leaks" if _leaks(audit) else "whether it leaks"
        parts.append(f"and because {', and '.join(doubts)}, this audit is inconclusive about {how}")
    return "; ".join(parts) + "."
