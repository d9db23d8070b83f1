"""What an audit finds, typed: the content of `audit.json`, and the summary of it in an obfuscator's bundle.

Nothing else reads figures of an audit by their keys. The published JSON Schema is `docs/schemas/audit.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeGuard

from pydantic import AliasChoices, ConfigDict, Field

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import read_json, write_json
from sfumato.errors import AuditError
from sfumato.lab.attacks.extraction import Extraction
from sfumato.lab.attacks.identification import Identification
from sfumato.lab.attacks.image_attributes import Attribute
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.bounds import Certificate
from sfumato.lab.audit.model import Model
from sfumato.lab.evaluation.recognition import Recognition, RecognitionScale

SCHEMA: Literal["sfumato.audit/2"] = "sfumato.audit/2"
READABLE = (SCHEMA, "sfumato.audit/1")

Finding = Literal["leaks", "inconclusive", "withstood"]
Role = Literal["this", "swept", "baseline", "local", "identity", "gated", "paper", "other"]
"""Of a point: the audited obfuscator, a setting of a sweep, a baseline, the on-device baseline, the plain image, the
plain image behind a gate, a figure of the paper, another obfuscator."""


class TargetFacts(Model):
    """The obfuscator that was audited.

    Attributes:
        kind: "obfuscator", "baseline", or "identity" for the plain image.
        fingerprint: SHA-256 of what it computes, in hex; empty if not known.
        gradients: whether attackers had its gradients.
        shadow: name of the second obfuscator by the same recipe; None without one.
    """

    name: str
    kind: str
    height: int
    width: int
    stochastic: bool
    fingerprint: str = ""
    gradients: bool = False
    shadow: str | None = None


class BudgetFacts(Model):
    """The budget that was spent.

    Attributes:
        description: what the budget is good for.
        images: training images over all decoders; None in bundles of early versions.
    """

    name: str
    description: str = Field(validation_alias=AliasChoices("description", "says"))
    images: int | None = None


class DataFacts(Model):
    """The images, with their SHA-256 in hex; of the training images `held_out` were handed to no attacker."""

    source: str
    train_images: int
    test_images: int
    sha256: dict[Literal["train", "test"], str]
    held_out: int = 0


class GatedPlain(Model):
    """Plain images behind a gate: the share that is sent, what leaks over all images, and the accuracy."""

    offload_rate: float
    excess_leakage: float
    accuracy: float


class Alternatives(Model):
    """What is reached without an obfuscator.

    Attributes:
        accuracy_local: of the on-device baseline, in [0, 1]; None if not measured.
        accuracy_plain: of the cloud's classifier on plain images.
        gated_plain: the on-device baseline predicts where it is confident, the other images are sent in the clear.
    """

    accuracy_local: float | None = None
    accuracy_plain: float
    gated_plain: tuple[GatedPlain, ...] = ()


class Utility(Alternatives):
    """Accuracies in [0, 1], all on the same test images."""

    accuracy_obfuscated: float
    test_images: int


class Reference(Model):
    """A reconstruction that needs no attack.

    Attributes:
        name: what is known of the image.
        bits: how many bits beyond the label that is; None where it is not counted in bits, or the label is not known.
        mse: mean squared error of pixels in [0, 1].
        psnr_db: of that error, in dB.
        ssim: structural similarity.
        images: test images that it was measured on.
    """

    name: str
    bits: int | None
    mse: float
    psnr_db: float
    ssim: float
    images: int


class _AnyTrial(Model):
    key: str
    attacker: str
    threat: Threat
    pairs: int | None = None
    views: int = 1
    seed: int = 0
    seconds: float = 0.0


class DoneTrial(_AnyTrial):
    """A trial with figures.

    Attributes:
        key: names its files.
        pairs: known pairs; None where the threat model does not count them.
        views: obfuscations of each image that were averaged.
        mse: mean squared error of pixels in [0, 1].
        psnr_db: of that error, in dB.
        ssim: structural similarity.
        excess_leakage: 0, only the label leaks; 1, the image.
        mse_compared: `mse`, scaled to all test images by the class mean's error, so that attackers that were tried on
            fewer can be compared.
        test_images: how many were attacked.
        params: of the attacker.
        images_seen: training images, with repetition.
        curve: (training images seen, mean squared error on held-out pairs).
        flattened: whether the end of the curve is flat; None without a curve.
        recognition: what an evaluator recognises in the reconstructions; None if there was none.
    """

    status: Literal["done"] = "done"
    mse: float
    psnr_db: float
    ssim: float
    excess_leakage: float
    mse_compared: float
    test_images: int
    params: int | None = None
    images_seen: int | None = None
    curve: tuple[tuple[int, float], ...] = ()
    flattened: bool | None = None
    recognition: Recognition | None = None


class LostTrial(_AnyTrial):
    """A trial without figures, and the reason."""

    status: Literal["failed", "not run"]
    reason: str


AnyTrial = Annotated[DoneTrial | LostTrial, Field(discriminator="status")]


class SanityCheck(Model):
    """One sanity check of the attackers.

    Attributes:
        passed: None if it was not run.
        measured: in words.
        needed: in words.
        detail: of which attacker, and why it must pass.
    """

    name: str
    passed: bool | None
    measured: str
    needed: str
    detail: str = ""


class GateFigures(Model):
    """Accuracy and leakage with selective offloading; leakages are None if too few images are sent.

    Attributes:
        threshold: an image is sent if the on-device prediction is less probable.
        offload_rate: share of the test images that are sent.
        accuracy_device: of the on-device predictions alone.
        accuracy_gated: of on-device and cloud predictions together; None without the cloud's classifier.
        attacker: the best one on sent images.
        mse_sent: its mean squared error on them.
        class_mean_mse_sent: the class mean's on them.
        excess_leakage_sent: over the images sent.
        excess_leakage_mean: over all images; those handled on-device leak at most their label.
    """

    threshold: float
    offload_rate: float
    sent_images: int
    accuracy_device: float
    accuracy_gated: float | None = None
    attacker: str | None = None
    mse_sent: float | None = None
    class_mean_mse_sent: float | None = None
    excess_leakage_sent: float | None = None
    excess_leakage_mean: float | None = None


class Point(Model):
    """A point of the privacy-utility plot.

    Attributes:
        accuracy: in [0, 1].
        excess_leakage: over all images; None where it was not measured.
        budget: of the audit, by name.
        source: where the figures come from.
        local: accuracy of the on-device baseline; None, like the next two, where it was not measured.
        mixture: accuracy at the same leakage without an obfuscator.
        mixing: how that is reached, in words.
        series: points of the same series are joined, in their order.
        spread: standard deviations over seeds, of accuracy and of excess leakage.
    """

    name: str
    accuracy: float
    excess_leakage: float | None
    role: Role
    budget: str | None = None
    source: str
    best_attacker: str | None = None
    local: float | None = None
    mixture: float | None = None
    mixing: str | None = None
    series: str | None = None
    spread: tuple[float, float] | None = None


class Verdict(Model):
    """What is read first.

    Attributes:
        finding: "leaks": more than the label was reconstructed, re-identified or inferred, or training images were
            extracted from the bundle. "withstood": these attackers
            at this budget reconstructed no more than the label gives; others may. "inconclusive": nothing was found,
            by an audit that does not show that it would have found something.
        sentences: what an eavesdropper gets, and what the bundle shows of the training images; the privacy-utility
            trade-off, with the gate if there is one; the limits of the audit.
    """

    finding: Finding
    sentences: tuple[str, str, str]


class Provenance(Model):
    """Commit, versions and machine."""

    model_config = ConfigDict(extra="allow")

    sfumato: str
    commit: str | None = None
    written: str
    python: str
    libraries: dict[str, str]
    machine: dict[str, str | int | None]
    seeds: tuple[int, ...] = ()
    accelerator: str | None = None
    threads: int | None = None
    seconds: float | None = None


class AuditSummary(Model):
    """What the bundle of an obfuscator keeps of its audit.

    Attributes:
        best: the done trial with the lowest error among those with one view of each image, without its curve; None if
            no attacker finished.
        utility: None if the classifier's classes are not known.
        class_mean_mse: the class mean's mean squared error on all test images: what the label alone gives.
        recognition: what the label alone and the image itself reach, for the figures of `best`; None if not measured.
        extraction: what each file of the bundle shows of the training images; empty for what is no bundle, and in
            audits of early versions.
    """

    verdict: Verdict
    budget: BudgetFacts
    best: DoneTrial | None
    utility: Utility | None
    gate: GateFigures | None = None
    class_mean_mse: float
    recognition: RecognitionScale | None = None
    identification: tuple[Identification, ...]
    attributes: tuple[Attribute, ...]
    extraction: tuple[Extraction, ...] = ()
    certificate: Certificate | None = None
    provenance: Provenance


class AuditResult(AuditSummary):
    """The content of `audit.json`.

    Attributes:
        certificate_note: what the certificate holds for, or why there is none.
        recognition_note: why recognition was not measured; empty where it was.
    """

    model_config = ConfigDict(title="sfumato audit", serialize_by_alias=True)

    version: Literal["sfumato.audit/2"] = Field(default=SCHEMA, alias="schema")
    target: TargetFacts
    data: DataFacts
    references: tuple[Reference, ...]
    trials: tuple[AnyTrial, ...]
    sanity_checks: tuple[SanityCheck, ...]
    certificate_note: str
    recognition_note: str = ""
    frontier: tuple[Point, ...]

    @property
    def as_json(self) -> dict[str, object]:
        """See `Model.as_json`; the schema comes first."""
        return {"schema": self.version, **super().as_json}

    @property
    def done(self) -> list[DoneTrial]:
        """The trials with figures."""
        return [trial for trial in self.trials if isinstance(trial, DoneTrial)]

    @property
    def counts(self) -> dict[str, int]:
        """How many trials were done, failed, and were not run."""
        return {status: sum(t.status == status for t in self.trials) for status in ("done", "failed", "not run")}

    @classmethod
    def of(cls, value: object, where: object) -> Self:
        """See `Model.of`; an audit of another schema is refused, too."""
        if not is_audit(value):
            found = value.get("schema") if isinstance(value, dict) else None
            raise AuditError(f"{where} has schema {found!r:.60}; audits have {' or '.join(map(repr, READABLE))}")
        return super().of(value | {"schema": SCHEMA}, where)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an `audit.json` of this version or an earlier one.

        Raises:
            AuditError: the file cannot be read, or is not a complete audit.
        """
        return cls.of(read_json(path, AuditError), path)

    def write(self, path: Path) -> None:
        """Write `audit.json`.

        Raises:
            BundleError: the disk refuses.
        """
        write_json(path, self.as_json)

    @property
    def summary(self) -> AuditSummary:
        """What the bundle keeps."""
        return AuditSummary(**{name: getattr(self, name) for name in AuditSummary.model_fields})


def is_audit(value: object) -> TypeGuard[dict[str, object]]:
    """Whether plain JSON says that it is an audit, of any version that can be read."""
    return isinstance(value, dict) and value.get("schema") in READABLE


def recorded(bundle: Bundle) -> AuditSummary | None:
    """The audit in an obfuscator's bundle; None without one.

    Raises:
        AuditError: it is broken.
    """
    kept = bundle.figures.audit
    return None if kept is None else AuditSummary.of(kept, bundle.path)


def best_of(trials: Sequence[DoneTrial | LostTrial | None]) -> DoneTrial | None:
    """The trial with the lowest error among those with one view of each image; None if none was done."""
    done = [trial for trial in trials if isinstance(trial, DoneTrial) and trial.views == 1]
    return min(done, key=lambda trial: trial.mse_compared, default=None)
