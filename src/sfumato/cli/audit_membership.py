"""`sfumato audit --membership`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sfumato.artifacts import shipped
from sfumato.cli import options
from sfumato.cli.output import conclude, prepare, print_checks, print_table, write_result
from sfumato.cli.progress import bars

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.membership import MembershipResult
    from sfumato.lab.evaluation.detection import Detected

_HEADERS = ("attack", "AUC, 95 % interval", "TPR, % at 0.1 % FPR", "at 1 % FPR")


def infer(
    *,
    obfuscator: str | None,
    classifier: Path | None,
    membership_reference: Path | None,
    data: str,
    label_column: str | None,
    images: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print how well attackers tell the images that a bundle was trained on from others.

    Raises:
        typer.Exit: a check fails.
    """
    from sfumato.lab.audit.membership import infer_membership
    from sfumato.lab.data import load_images

    prepare(out)
    bundle = options.open_obfuscator(Path(obfuscator) if obfuscator else None)
    reference = options.open_obfuscator(membership_reference) if membership_reference else None
    size = (bundle.preprocessing.height, bundle.preprocessing.width)
    with bars(quiet=as_json) as shown:
        train, test = (
            load_images(data, split, size=size, label_column=label_column, unlabelled=True, progress=shown.progress)
            for split in ("train", "test")
        )
        found = infer_membership(
            bundle,
            train,
            test,
            classifier=_classifier_of(bundle, classifier),
            reference=reference,
            images=images,
            seed=seed,
            progress=shown.progress,
        )
    write_result(out, found.as_json)
    conclude(found.as_json, found.sanity_checks, partial(_print, found), as_json=as_json)


def _classifier_of(bundle: Bundle, path: Path | None) -> Bundle | None:
    """Return the named classifier, or the shipped one if the bundle is for it."""
    served = options.open_classifier(path or shipped.classifier_bundle())
    return served if path or bundle.classifier_identity == served.classifier_identity else None


def _print(found: MembershipResult) -> None:
    rows = [
        (
            f"{row.subject}: {row.attacker}, {row.signal}",
            f"{row.detection.auc:.3f} ({row.detection.auc_low:.3f} to {row.detection.auc_high:.3f})",
            *map(_rate, row.detection.rates),
        )
        for row in found.attacks
    ]
    counted = f"{found.attacks[0].members:,} of its training images against as many {found.others_from}"
    print_table(_HEADERS, rows, numbers=range(1, 4), title=f"{found.obfuscator}: {counted}; chance is an AUC of 0.5")
    inferred = any(row.infers for row in found.attacks if row.subject == "obfuscator")
    typer.echo(f"membership is {'' if inferred else 'not clearly '}inferred from the obfuscator")
    print_checks(found.sanity_checks)


def _rate(rate: Detected) -> str:
    if rate.tpr is None or rate.low is None or rate.high is None:
        return "too few"
    return f"{100 * rate.tpr:.2f} ({100 * rate.low:.2f} to {100 * rate.high:.2f})"
