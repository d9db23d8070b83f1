"""The page's section on the paper's optimum: from three results files. Needs no torch."""

from __future__ import annotations

from typing import Any

from reproduction import constants
from reproduction.markdown import (
    NONE,
    command,
    count,
    error,
    found_by,
    measured,
    percent,
    points,
    ratio,
    table,
    trained,
)

Results = dict[str, Any] | None
LITTLE = 0.05
"""An excess leakage below which an image counts as not reconstructed."""


def holds(results: Results, size: str) -> str:
    """(a) Whether the joint deobfuscator's failure holds against attackers who came afterwards."""
    if results is None:
        return command("optimum", size)
    rows = []
    for row in results["rows"]:
        audit = row["audit"]
        later = (
            [NONE] * 4
            if audit is None
            else [
                error(audit["mse"]),
                error(audit["class_mean_mse"]),
                ratio(audit["excess_leakage"]),
                found_by(audit),
            ]
        )
        rows.append(
            [row["obfuscator"], percent(row["accuracy_obfuscated"]), error(row["joint_mse"]), *later,
             trained(row["trained"])]
        )  # fmt: skip
    headers = (
        "obfuscator",
        "accuracy",
        "MSE, joint deobfuscator",
        "MSE, best later attacker",
        "MSE, class mean",
        "excess leakage, at least",
        "attacker",
        "trained",
    )
    return f"{table(headers, rows)}\n\n{verdict(results)} {measured(results)}"


def verdict(results: dict[str, Any]) -> str:
    """One sentence: in how many cases later attackers reconstructed more than the joint deobfuscator."""
    rows = [row for row in results["rows"] if row["audit"] is not None]
    worse = [row for row in rows if row["audit"]["mse"] < row["joint_mse"]]
    return (
        f"For {len(worse)} of {len(rows)} obfuscators of the size `{results['size']}` an attacker trained afterwards "
        "reconstructs more than the deobfuscator that was trained jointly."
    )


def claim(results: dict[str, Any], image: str) -> str:
    """Whether the first obfuscator bears out the paper's claim, in one paragraph and one image.

    Args:
        results: of the optimum.
        image: the Markdown of the panel with what both kinds of attacker reconstruct.
    """
    row = results["rows"][0]
    audit = row["audit"]
    if audit is None:
        return ""
    name = row["paper"] or row["obfuscator"]
    found, leaks = audit.get("reidentified"), audit["excess_leakage"]
    picked = (
        f", and an attacker picks the image among {found['candidates']} of its class in {percent(found['top1'])} of "
        f"cases (chance {percent(found['chance'])})"
        if found
        else ""
    )
    if leaks < LITTLE:
        answer = "**So the claim holds against these attackers**, who find a lower bound of what leaks."
    elif audit["mse"] < row["joint_mse"]:
        answer = (
            "**So the claim does not hold: the deobfuscator trained beside the obfuscator understates what leaks.**"
        )
    else:
        answer = (
            "**So the claim does not hold**, and the deobfuscator trained beside the obfuscator shows that already."
        )
    return (
        "The paper argues that an obfuscated image cannot be reconstructed, because the deobfuscator that was trained "
        f"together with the obfuscator cannot do it. For {name} ({percent(row['accuracy_obfuscated'])} of the "
        "obfuscated test images are classified correctly) our joint deobfuscator has a mean squared error of "
        f"{error(row['joint_mse'])}; showing the mean image of the class, which the label alone allows, has "
        f"{error(audit['class_mean_mse'])}. The best attacker trained after the obfuscator was fixed "
        f"({found_by(audit)}) has {error(audit['mse'])}: an excess leakage of at least {ratio(leaks)}, where 0 means "
        f"that only the label leaks and 1 that the image does{picked}. {answer}\n\n{image}"
    )


def epochs(results: Results, size: str, folder: str) -> str:
    """(b) How accuracy and errors develop while the networks train."""
    if results is None:
        return command("optimum", size)
    rows = []
    for run in results["runs"]:
        for row in run["epochs"]:
            errors = {attacker["attacker"]: attacker["mse"] for attacker in row["attackers"]}
            rows.append(
                [
                    run["obfuscator"],
                    f"{row['epoch']} of {run['trained']['epochs']}",
                    percent(row["accuracy_obfuscated"]),
                    error(row["joint_mse"]),
                    *map(error, errors.values()),
                    points(row["later_mse"] / row["joint_mse"] - 1) + " %",
                    error(row["class_mean_mse"]),
                    count(row["test_images"]),
                ]
            )
    names = list(dict.fromkeys(a["attacker"] for run in results["runs"] for row in run["epochs"]
                               for a in row["attackers"]))  # fmt: skip
    headers = (
        "obfuscator",
        "epoch",
        "accuracy",
        "MSE, joint",
        *(f"MSE, {name}" for name in names),
        "best later against joint",
        "MSE, class mean",
        "test images",
    )
    lengths = {run["obfuscator"]: run["trained"]["epochs"] for run in results["runs"]}
    spoken = ", ".join(f"{name} {number}" for name, number in lengths.items())
    note = (
        f"Epochs that were trained: {spoken}; the paper trains {constants.EPOCHS}. The learned attacker sees "
        f"{count(results['decoder_images'])} training images, far fewer than in an audit."
    )
    if size == "cpu":
        note += " What the paper's schedule reaches: " + command("optimum", "paper") + "."
    curve = ""
    if results.get("curve"):
        curve = f"![Accuracy on obfuscated test images over the epochs]({folder}/{results['curve']})\n\n"
        gains = [gain for run in results["runs"] if (gain := _late_gain(run)) is not None]
        note += f" Over the last third of its epochs the accuracy changed by {' and '.join(gains)}."
    return f"{curve}{table(headers, rows)}\n\n{note} {measured(results)}"


def _late_gain(run: dict[str, Any]) -> str | None:
    """What the last third of the epochs added to the accuracy, such as "+0.4 points (vgg19-obfuscator)"."""
    looks = {look["epoch"]: look["accuracy"] for look in run["trained"].get("history") or []}
    if len(looks) < 3:
        return None
    last = max(looks)
    before = max(epoch for epoch in looks if epoch <= max(min(looks), last * 2 / 3))
    return f"{points(looks[last] - looks[before])} points ({run['obfuscator']})"


def lambdas(results: Results, size: str) -> str:
    """(c) What lambda does."""
    if results is None:
        return command("optimum", size)
    rows = [
        [
            f"{row['trained']['lambda']:.1f}",
            str(row["trained"]["batch_size"]),
            percent(row["accuracy_obfuscated"]),
            points(_lost(row)),
            error(row["joint_mse"]),
            f"{error(row['later_mse'])} ({row['later_attacker']})",
            error(row["class_mean_mse"]),
            count(row["test_images"]),
            trained(row["trained"]),
        ]
        for row in results["rows"]
    ]
    headers = (
        "lambda",
        "batch size",
        "accuracy",
        "lost, points",
        "MSE, joint",
        "MSE, best later",
        "MSE, class mean",
        "test images",
        "trained",
    )
    theirs = constants.TABLE_1["ResNet18_1"]
    wanted = theirs.obfuscated - theirs.plain
    lost = {row["run"]: _lost(row) for row in results["rows"]}
    nearest = min(lost, key=lambda name: abs(lost[name] - wanted))
    note = (
        f"The paper gives neither lambda nor the batch size; its ResNet18 changes by {points(wanted)} points through "
        f"obfuscation. The nearest of these runs is `{nearest}` with {points(lost[nearest])}. The runs are short, so "
        "this compares them with each other, and tells little about the paper's value."
    )
    return f"{table(headers, rows)}\n\n{note} {measured(results)}"


def _lost(row: dict[str, Any]) -> float:
    """By how much obfuscation changes the accuracy, on the same images."""
    return float(row["accuracy_obfuscated"] - row["accuracy_plain"])


def shows(results: Results, size: str) -> str:
    """(d) What the obfuscated image still shows."""
    if results is None:
        return command("optimum", size)
    named = [(row["obfuscator"], row["remains"]) for row in results["rows"]]
    named += [("the image itself", results["beside"]["identity"]), ("the label alone", results["beside"]["label"])]
    rows = [[name, ratio(share["mean_colour"]), ratio(share["layout"])] for name, share in named]
    note = (
        "The share of variance that least squares explains from the payload, fitted on training images and measured "
        f"on {count(results['remains_test_images'])} test images: 1 is all of it, 0 none."
    )
    headers = ("the payload", "mean colour of the image", "4x4 block means around it")
    return f"{note}\n\n{table(headers, rows)}\n\n{measured(results)}"
