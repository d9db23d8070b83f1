"""What the independent attacker found, beside the audits' best: types, verdicts, and the section of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page_parts import percent, table

from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import Identification
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.evaluation.results import Result, read_object

MSE_MARGIN, TOP1_MARGIN = 0.05, 0.02
"""How much better than the audit's best counts as beating it: relative, and in points of the share."""
RESULTS, PAGE = Path("results/independent-attacker.json"), Path("docs/results.md")
BEGIN, END = f"<!-- independent attacker: from {RESULTS} -->", "<!-- independent attacker: end -->"
SPECIFICATION = "benchmarks/independent_attacker.md"


@dataclass(frozen=True)
class Network(Result):
    """One trained network.

    Attributes:
        loss: that it was trained with.
        held_out_mse: on the attacker's own held-out images, for the choice.
        held_out_top1: likewise.
        mse: over all test images, of pixels in [0, 1].
        psnr_db: of that error, in dB.
        ssim: structural similarity.
        top1: re-identification among the audit's candidates.
    """

    loss: str
    held_out_mse: float
    held_out_top1: float
    mse: float
    psnr_db: float
    ssim: float
    top1: float


@dataclass(frozen=True)
class Attack(Result):
    """One obfuscator, attacked; depends on the audit by its images and candidates alone.

    Attributes:
        version: of the specification.
        key: fingerprints of the obfuscator and the images, the candidates, and how long it trained: what must be the
            same for the attack to be the same.
        pairs: images and payloads that it learned from.
        held_out: images for the choice.
        test_images: that it attacked.
        candidates: for re-identification.
        queries: likewise.
        params: of each network.
        networks: one for each loss, in the order of the specification.
        seconds: for everything.
        measured: when, with what, on what.
    """

    version: int
    key: tuple[str, ...]
    pairs: int
    held_out: int
    test_images: int
    candidates: int
    queries: int
    params: int
    networks: tuple[Network, ...]
    seconds: float
    measured: dict[str, Any]

    @property
    def by_error(self) -> Network:
        """The network with the lowest error on held-out images; the first one of equals."""
        return min(self.networks, key=lambda one: one.held_out_mse)

    @property
    def by_identification(self) -> Network:
        """The network that re-identifies the most held-out images; the first one of equals."""
        return max(self.networks, key=lambda one: one.held_out_top1)


@dataclass(frozen=True)
class Row(Result):
    """A pair: an audit's best attackers, and the independent one.

    Attributes:
        audit: name of its file, without suffix.
        budget: of the audit.
        attacker: the audit's best by error.
        threat: what it knows.
        audit_mse: its error, over all test images.
        identifier: the audit's best by re-identification; None if it tried none.
        audit_top1: its share.
        loss: of the independent network that states the error.
        mse: its error, over all test images.
        mse_ratio: independent to audit's; None if the audit's is 0.
        identifier_loss: of the independent network that states the re-identification.
        top1: its share.
        top1_difference: independent less audit's; None if the audit tried none.
        beaten: the measures in which the audit's best is beaten: "mse", "top1".
        attack: in detail.
    """

    audit: str
    budget: str
    attacker: str
    threat: str
    audit_mse: float
    loss: str
    mse: float
    identifier_loss: str
    top1: float
    attack: Attack
    mse_ratio: float | None = None
    identifier: str | None = None
    audit_top1: float | None = None
    top1_difference: float | None = None
    beaten: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing(Result):
    """A pair that was not attacked, and the reason."""

    audit: str
    reason: str


@dataclass(frozen=True)
class Comparison(Result):
    """The content of the results file.

    Attributes:
        rows: one for each pair, by name.
        missing: audits whose obfuscator was not attacked.
        specification: where it stands.
        trial: images of a trial, whose figures mean nothing; None if it was none.
    """

    rows: tuple[Row, ...] = ()
    missing: tuple[Missing, ...] = ()
    specification: str = SPECIFICATION
    trial: int | None = None

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Read a results file; an empty one if there is no file.

        Raises:
            ResultsError: it cannot be read, or is another kind of file.
        """
        found = read_object(path)
        return cls() if found is None else cls.from_json(found)

    @property
    def holds(self) -> bool:
        """Whether every pair was attacked, and no audit beaten."""
        return bool(self.rows) and not self.missing and not any(row.beaten for row in self.rows)


def retrieval_of(audit: AuditResult) -> Sequence[Identification]:
    """Return the audit's re-identification among the most candidates of the query's class; empty if it tried none."""
    rows = [
        row
        for row in audit.identification
        if row.measure == "retrieval" and getattr(row, "classes", "one") == "one"  # later audits have galleries of all
    ]
    most = max((row.candidates for row in rows), default=0)
    return [row for row in rows if row.candidates == most]


def compare(name: str, audit: AuditResult, attack: Attack) -> Row:
    """Put an attack beside the best attackers of an audit.

    Raises:
        AuditError: none of the audit's attackers finished.
    """
    best = audit.best
    if best is None:
        raise AuditError(f"{name}: no attacker of the audit finished, so there is nothing to compare with")
    identifier = max(retrieval_of(audit), key=lambda row: row.top1, default=None)
    by_error, by_identification = attack.by_error, attack.by_identification
    difference = None if identifier is None else by_identification.top1 - identifier.top1
    beaten = ["mse"] if by_error.mse < (1 - MSE_MARGIN) * best.mse_compared else []
    beaten += ["top1"] if difference is not None and difference > TOP1_MARGIN else []
    return Row(
        audit=name,
        budget=audit.budget.name,
        attacker=best.attacker,
        threat=str(best.threat),
        audit_mse=best.mse_compared,
        loss=by_error.loss,
        mse=by_error.mse,
        mse_ratio=by_error.mse / best.mse_compared if best.mse_compared > 0 else None,
        identifier=None if identifier is None else identifier.attacker,
        audit_top1=None if identifier is None else identifier.top1,
        identifier_loss=by_identification.loss,
        top1=by_identification.top1,
        top1_difference=difference,
        beaten=tuple(beaten),
        attack=attack,
    )


def section(found: Comparison) -> str:
    """Return the paragraph and the table for a page, in Markdown.

    Raises:
        AuditError: there are no rows, or it was a trial.
    """
    if not found.rows or found.trial is not None:
        raise AuditError("a page is made of complete results: run benchmarks/independent_attacker.py without --limit")
    first = found.rows[0].attack
    lines = [
        f"An attacker that shares no network, training or split with the audit's "
        f"([specification](../{found.specification}), written before any training): a U-Net of "
        f"{first.params / 1e6:.1f} million parameters, trained on {first.pairs:,} pairs with each of "
        f"{len(first.networks)} losses; the loss is chosen on held-out images. {_verdict(found)}",
        "",
        *table(
            [
                "obfuscator", "MSE, audit's best", "independent", "ratio",
                "re-identified in the class, audit's best", "independent", "difference, points", "beaten",
            ],
            [_cells(row) for row in found.rows],
        ),
    ]  # fmt: skip
    if found.missing:
        lines += ["Not attacked: " + "; ".join(f"{one.audit} ({one.reason})" for one in found.missing) + ".", ""]
    return "\n".join(lines).rstrip()


def _verdict(found: Comparison) -> str:
    beaten = [f"{row.audit} ({' and '.join(_MEASURES[one] for one in row.beaten)})" for row in found.rows if row.beaten]
    margin = f"more than {percent(MSE_MARGIN, 0)} in MSE or {100 * TOP1_MARGIN:.0f} points in re-identification"
    audits = f"of {len(found.rows)} audit{'s' * (len(found.rows) > 1)}"
    if not beaten:
        return f"It beats the best attacker by {margin} in none {audits}."
    return f"It beats the best attacker by {margin} in {len(beaten)} {audits}: {', '.join(beaten)}."


_MEASURES = {"mse": "MSE", "top1": "re-identification"}


def _cells(row: Row) -> list[str]:
    return [
        row.audit,
        error(row.audit_mse),
        error(row.mse),
        "-" if row.mse_ratio is None else f"{row.mse_ratio:,.3g}",
        "-" if row.audit_top1 is None else f"{percent(row.audit_top1)} of {row.attack.candidates:,}",
        percent(row.top1),
        "-" if row.top1_difference is None else f"{100 * row.top1_difference:+.1f}",
        " and ".join(_MEASURES[one] for one in row.beaten) or "no",
    ]


def error(mse: float) -> str:
    """0.046412 -> "0.04641", 0.0000021 -> "2.1e-06"."""
    return f"{mse:.5f}" if mse >= 1e-4 or mse == 0 else f"{mse:.1e}"
