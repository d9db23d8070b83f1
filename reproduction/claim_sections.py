"""The page's sections on the paper's claim, from three results files. Needs no torch."""

from __future__ import annotations

from reproduction import constants
from reproduction.markdown import (
    NONE,
    command,
    count,
    error,
    found_by,
    measured,
    missing,
    percent,
    points,
    ratio,
    table,
    trained,
)
from reproduction.schema import EpochRun, Epochs, Lambdas, Optimum, PairFigures

NEGLIGIBLE = 0.05
"""Below this excess leakage an image counts as not reconstructed."""


def under_attack(results: Optimum | None, size: str) -> str:
    """(a) The joint deobfuscator's error compared with that of adaptive attackers."""
    if results is None:
        return missing("optimum", size)
    rows = []
    for row in results.rows:
        audit = row.audit
        adaptive = [NONE] * 4
        if audit is not None:
            errors = map(error, (audit.mse, audit.class_mean_mse))
            adaptive = [*errors, ratio(audit.excess_leakage), found_by(audit)]
        joint = [percent(row.accuracy_obfuscated), error(row.joint_mse)]
        rows.append([row.obfuscator, *joint, *adaptive, trained(row.trained)])
    headers = (
        "obfuscator",
        "accuracy",
        "MSE, joint deobfuscator",
        "MSE, best adaptive attacker",
        "MSE, class mean",
        "excess leakage, at least",
        "attacker",
        "training",
    )
    return f"{table(headers, rows)}\n\n{verdict(results)} {measured(results)}"


def verdict(results: Optimum) -> str:
    """For how many obfuscators an adaptive attacker reconstructs more than the joint deobfuscator, in a sentence."""
    worse, audited = verdict_counts(results)
    return (
        f"For {worse} of {audited} obfuscators of size `{results.size}`, an adaptive attacker reconstructs "
        "images with a lower error than the jointly trained deobfuscator."
    )


def verdict_counts(results: Optimum) -> tuple[int, int]:
    """Count the obfuscators of `verdict`, and all that were audited."""
    audited = [(row.audit, row.joint_mse) for row in results.rows if row.audit is not None]
    return sum(audit.mse < joint_mse for audit, joint_mse in audited), len(audited)


def claim(results: Optimum, panel: str) -> str:
    """Say whether the first obfuscator supports the paper's claim, in one paragraph and one image.

    Args:
        results: with at least one row.
        panel: the Markdown of the image.
    """
    row = results.rows[0]
    audit = row.audit
    if audit is None:
        return ""
    found = audit.reidentified
    reidentified = ""
    if found:
        reidentified = (
            f" An attacker also re-identifies the image among {found.candidates} of its class in "
            f"{percent(found.top1)} of cases (chance: {percent(found.chance)})."
        )
    if audit.excess_leakage < NEGLIGIBLE:
        answer = "**The claim holds against these attackers**, which give a lower bound of the leakage."
    elif audit.mse < row.joint_mse:
        answer = "**The claim does not hold: the jointly trained deobfuscator underestimates the leakage.**"
    else:
        answer = "**The claim does not hold**, and the jointly trained deobfuscator already shows it."
    return (
        "The paper argues that an obfuscated image cannot be reconstructed because the jointly trained deobfuscator "
        f"fails to reconstruct it. We tested this with {row.paper or row.obfuscator}, where "
        f"{percent(row.accuracy_obfuscated)} of the obfuscated test images are classified correctly. Our joint "
        f"deobfuscator has a mean squared error (MSE) of {error(row.joint_mse)}. The mean image of the class, which "
        f"the label alone reveals, has {error(audit.class_mean_mse)}. The best adaptive attacker ({found_by(audit)}) "
        f"has {error(audit.mse)}: an excess leakage of at least {ratio(audit.excess_leakage)}, where 0 means that "
        f"only the label leaks, and 1 that the whole image leaks.{reidentified} {answer}\n\n{panel}"
    )


def epochs(results: Epochs | None, size: str, folder: str) -> str:
    """(b) Accuracy and errors during training."""
    if results is None:
        return missing("optimum", size)
    rows = [
        [
            run.obfuscator,
            f"{row.epoch} of {run.trained.epochs}",
            percent(row.accuracy_obfuscated),
            error(row.joint_mse),
            *(error(attacker.mse) for attacker in row.attackers),
            points(row.adaptive_mse / row.joint_mse - 1) + " %",
            error(row.class_mean_mse),
            count(row.test_images),
        ]
        for run in results.runs
        for row in run.epochs
    ]
    attackers = (attacker.attacker for run in results.runs for row in run.epochs for attacker in row.attackers)
    headers = (
        "obfuscator",
        "epoch",
        "accuracy",
        "MSE, joint",
        *(f"MSE, {name}" for name in dict.fromkeys(attackers)),
        "best adaptive relative to joint",
        "MSE, class mean",
        "test images",
    )
    lengths = ", ".join(f"{run.trained.epochs} ({run.obfuscator})" for run in results.runs)
    note = (
        f"Epochs of training: {lengths}; the paper trains {constants.EPOCHS}. The learned attacker sees "
        f"{count(results.decoder_images)} training images, far fewer than in an audit."
    )
    if size == "cpu":
        note += f" For longer schedules, run {command('optimum', 'paper')}."
    curve = ""
    if results.curve:
        curve = f"![Accuracy on obfuscated test images over the epochs]({folder}/{results.curve})\n\n"
        gains = [gain for run in results.runs if (gain := _late_gain(run)) is not None]
        note += f" Change of the accuracy over the last third of the epochs: {', '.join(gains)}."
    return f"{curve}{table(headers, rows)}\n\n{note} {measured(results)}"


def _late_gain(run: EpochRun) -> str | None:
    """The change of the accuracy over the last third of the epochs: "+0.4 points (vgg19-obfuscator)"."""
    accuracy = {validation.epoch: validation.accuracy for validation in run.trained.history or ()}
    if len(accuracy) < 3:
        return None
    last = max(accuracy)
    before = max(epoch for epoch in accuracy if epoch <= max(min(accuracy), last * 2 / 3))
    return f"{points(accuracy[last] - accuracy[before])} points ({run.obfuscator})"


def lambdas(results: Lambdas | None, size: str) -> str:
    """(c) The effect of lambda."""
    if results is None:
        return missing("optimum", size)
    rows = [
        [
            f"{row.trained.privacy_weight:.1f}",
            str(row.trained.batch_size),
            percent(row.accuracy_obfuscated),
            points(_change(row)),
            error(row.joint_mse),
            f"{error(row.adaptive_mse)} ({row.adaptive_attacker})",
            error(row.class_mean_mse),
            count(row.test_images),
            trained(row.trained),
        ]
        for row in results.rows
    ]
    headers = (
        "lambda",
        "batch size",
        "accuracy",
        "difference to plain, points",
        "MSE, joint",
        "MSE, best adaptive",
        "MSE, class mean",
        "test images",
        "training",
    )
    theirs = constants.TABLE_1["ResNet18_1"]
    wanted = theirs.obfuscated - theirs.plain
    nearest = min(results.rows, key=lambda row: abs(_change(row) - wanted))
    note = (
        "The paper states neither lambda nor the batch size. Obfuscation changes the accuracy of its ResNet18 by "
        f"{points(wanted)} points; the closest of these runs is `{nearest.run}` with {points(_change(nearest))} "
        "points. The runs are short: compare them with each other, not with the paper."
    )
    return f"{table(headers, rows)}\n\n{note} {measured(results)}"


def _change(row: PairFigures) -> float:
    """The change of the accuracy by obfuscation, on the same images."""
    return row.accuracy_obfuscated - row.accuracy_plain


def explained(results: Optimum | None, size: str) -> str:
    """(d) What the payload still reveals."""
    if results is None:
        return missing("optimum", size)
    named = [(row.obfuscator, row.explained) for row in results.rows]
    named += [("plain image", results.references.plain_image), ("label alone", results.references.class_mean)]
    rows = [[name, ratio(share.mean_colour), ratio(share.layout)] for name, share in named]
    note = (
        "Share of variance that least squares explains from the payload, fitted on training images and measured on "
        f"{count(results.explained_test_images)} test images: 1 is all of it, 0 none."
    )
    headers = ("payload", "mean colour of the image", "mean colours of 4x4 blocks, relative to it")
    return f"{note}\n\n{table(headers, rows)}\n\n{measured(results)}"
