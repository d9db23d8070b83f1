"""Membership inference from a bundle: was an image among those that the obfuscator was trained on?

Members are the bundle's own training images. The others are test images or, with a reference that was trained on the
other half of the training images, those of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.artifacts import records
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import AuditError, DataError
from sfumato.lab.attacks import encoders, identification, membership
from sfumato.lab.attacks.encoders import Encoder
from sfumato.lab.attacks.identification import BATCH, another_view, train
from sfumato.lab.attacks.membership import Predict, label_confidence, likelihood_ratio, view_similarity
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.target import Target
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.result_store import cached, code_sha256
from sfumato.lab.audit.schema import Provenance, SanityCheck
from sfumato.lab.audit.targets import bundle_target
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation import detection as measured
from sfumato.lab.evaluation.detection import Detection, detection
from sfumato.progress import Progress, silent

SCHEMA: Literal["sfumato.membership/1"] = "sfumato.membership/1"
MOST_IMAGES = 10_000
"""Members, and as many others, unless other numbers are asked for: 10 others exceed the threshold at 0.1 %."""
LEAST_IMAGES = 10
_CONTROL_IMAGES, _CONTROL_SIDE, _CONTROL_CLASSES, _CONTROL_AUC = 48, 16, 4, 0.75
_CLASSIFIER_STEPS, _ENCODER_STEPS = 40, 120

Subject = Literal["obfuscator", "classifier", "images"]
"""What is under attack. The last two are for comparison: the classifier on plain images, which may have been trained on
the same images, and the plain images alone, which tell nothing unless members and others differ in kind."""


class Membership(Model):
    """One attack.

    Attributes:
        subject: what is under attack, see `Subject`.
        attacker: "loss", "likelihood ratio", "similarity of views", or "similarity of views, less the reference's".
        signal: what the attacker reads.
        members: training images of the bundle that were tried.
        others: images that it has not seen, likewise.
        detection: how well the attacker tells the two apart; chance is an AUC of 0.5.
    """

    subject: Subject
    attacker: str
    signal: str
    members: int
    others: int
    detection: Detection

    @property
    def infers(self) -> bool:
        """Whether membership is clearly inferred: the whole interval of the AUC lies above chance."""
        return self.detection.auc_low > 0.5


class MembershipResult(Model):
    """What `sfumato audit --membership` writes.

    Attributes:
        obfuscator: name of the bundle's folder.
        reference: likewise, of the one that was trained on the other half; None without one.
        files: SHA-256 of the bundle's files, in hex.
        others_from: where the images that are no members come from.
        attacks: of the obfuscator first, then for comparison.
        sanity_checks: overfitted networks must be found out.
        provenance: see `sfumato.artifacts.provenance`.
    """

    model_config = ConfigDict(title="sfumato audit --membership", serialize_by_alias=True)

    version: Literal["sfumato.membership/1"] = Field(default=SCHEMA, alias="schema")
    obfuscator: str
    reference: str | None = None
    files: dict[str, str]
    others_from: Literal["test images", "training images of the reference"]
    attacks: tuple[Membership, ...]
    sanity_checks: tuple[SanityCheck, ...]
    provenance: Provenance


@dataclass(frozen=True)
class _Trained:
    """What a bundle's files compute, for the attackers.

    Attributes:
        target: image -> payload.
        predictions: name -> logits.
    """

    target: Target
    predictions: Mapping[str, Predict]


def infer_membership(
    bundle: Bundle,
    train: ImageSet,
    test: ImageSet,
    *,
    classifier: Bundle | None = None,
    reference: Bundle | None = None,
    images: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> MembershipResult:
    """Try every attacker on members and others, and the same attackers on overfitted networks.

    Args:
        bundle: the obfuscator's.
        train: the training images that it was made from, all of them.
        test: the test images.
        classifier: the one that it was trained for; without it the loss on the payload is not tried.
        reference: an obfuscator by the same recipe, trained on the other half.
        images: so many members and others; `MOST_IMAGES` if None, or as many as there are.
        seed: of the sample, of views and of resampling.
        progress: see `Progress`.

    Raises:
        AuditError: the bundle does not say what it was trained on, or on other images; too few images; a reference
            that was not trained on the other half, or for another classifier; or a payload that cannot be used.
        BundleError: a file cannot be run.
    """
    members = trained_on(bundle, train)
    if reference is not None:
        _check_reference(bundle, reference)
        others = trained_on(reference, train)
    else:
        others = test.of_classes(bundle.labels) if test.labelled else test
    count = min(len(members), len(others), images or MOST_IMAGES)
    if count < LEAST_IMAGES:
        raise AuditError(
            f"{len(members):,} members and {len(others):,} others, of which {count} are to be tried: membership "
            f"inference needs at least {LEAST_IMAGES} of each"
        )
    members, others = (_sample(part, count, seed) for part in (members, others))
    pixels = torch.cat([members.images, others.images])
    labels = torch.cat([members.labels, others.labels]) if members.labelled and others.labelled else None
    run = _Attack(pixels, labels, count, seed, progress)
    plain = ClassifierFunction(classifier) if classifier else None
    found = list(run.on(_loaded(bundle, plain), _loaded(reference, plain) if reference else None))
    if classifier is not None and plain is not None and labels is not None:
        size = classifier.preprocessing
        confidence = run.confidence(lambda x: torch.from_numpy(plain(size.normalize((x.float() / 255).numpy()))))
        found.append(run.judged("classifier", "loss", "logits for the plain image", confidence))
    found.append(run.judged("images", "similarity of views", "plain image", run.similarity(lambda x: x.float() / 255)))
    facts = provenance(
        seed=seed,
        train={"data": train.source, "data_sha256": train.sha256, "images": count},
        test={"data": test.source, "data_sha256": test.sha256},
        classifier=classifier.classifier_fingerprint if classifier else None,
        reference_files=dict(reference.files) if reference else None,
    )
    return MembershipResult(
        obfuscator=bundle.path.resolve().name,
        reference=reference.path.resolve().name if reference else None,
        files=dict(bundle.files),
        others_from="training images of the reference" if reference else "test images",
        attacks=tuple(found),
        sanity_checks=membership_checks(train, progress=progress),
        provenance=Provenance.model_validate(facts.to_json()),
    )


def trained_on(bundle: Bundle, train: ImageSet) -> ImageSet:
    """Return the images that a bundle was trained on, as its recipe and provenance say, with the bundle's classes.

    Args:
        bundle: the obfuscator's.
        train: all training images of the data set, in their order.

    Raises:
        AuditError: it does not say so, or these images are others.
    """
    recipe, made = bundle.recipe, _training(bundle)
    digest = made.data_sha256.get("train") if isinstance(made.data_sha256, Mapping) else None
    if not isinstance(digest, str) or made.train_images is None or made.others.get("streamed"):
        raise AuditError(
            f"{bundle.path} does not say which images it was trained on (they were streamed, the method learns "
            "nothing, or an early version made it): membership cannot be inferred; train it again from images in memory"
        )
    if digest != train.sha256:
        raise AuditError(
            f"{bundle.path} was trained on {made.data} with hash {digest[:12]}…; these are {train.source} with hash "
            f"{train.sha256[:12]}…: give the data set, size and columns that it was trained with"
        )
    data = recipe.data if isinstance(recipe.data, Mapping) else {}
    try:
        images = train.subset(data.get("train_images")).half(data.get("half"))
        images = images.split(recipe.held_out_images)[0] if recipe.held_out_images else images
    except (DataError, TypeError) as error:
        raise AuditError(f"{bundle.path}: its recipe does not fit {len(train):,} images: {error}") from error
    if len(images) != made.train_images:
        raise AuditError(
            f"{bundle.path} was trained on {made.train_images:,} images, but its recipe chooses {len(images):,}: "
            "members cannot be told from others"
        )
    return images.of_classes(bundle.labels) if images.labelled else images


def _training(bundle: Bundle) -> records.Provenance:
    """The provenance of a bundle's training: of one in 8-bit integers, that of the bundle that it was made of."""
    earlier = bundle.provenance.others.get("training")
    return records.Provenance.from_json(earlier) if isinstance(earlier, Mapping) else bundle.provenance


def _check_reference(bundle: Bundle, reference: Bundle) -> None:
    if bundle.classifier_identity != reference.classifier_identity:
        raise AuditError(
            f"{reference.path} was trained for another classifier than {bundle.path}; a reference differs in nothing "
            "but its training images"
        )
    (half, rest), (other, others) = _half(bundle.recipe), _half(reference.recipe)
    if {half, other} != {"first", "second"} or rest != others:
        said = ", ".join(f"{of.path}: {half or 'all'} of {rest or 'all'}" for of, half, rest in (
            (bundle, half, rest), (reference, other, others)
        ))  # fmt: skip
        raise AuditError(
            f"bundle and reference were not trained on complementary halves of the same images ({said}); train the "
            "same recipe twice, with --set data.half=first and --set data.half=second"
        )


def _half(recipe: RecipeRecord) -> tuple[object, object]:
    """Which half a recipe uses, and of how many images; None for all."""
    data = recipe.data if isinstance(recipe.data, Mapping) else {}
    return data.get("half"), data.get("train_images")


def _sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    return images if count == len(images) else images.split(count, seed=seed)[1]


def _loaded(bundle: Bundle, classifier: ClassifierFunction | None) -> _Trained:
    target, predictions = bundle_target(bundle), {}
    if target.gate is not None:
        own = target.gate.logits
        predictions["on-device logits"] = lambda x: own(x.float() / 255)
    if classifier is not None:
        predictions["logits for the payload"] = lambda x: torch.from_numpy(classifier(target.observe(x).numpy()))
    return _Trained(target, predictions)


@dataclass(frozen=True)
class _Attack:
    """Members and others in one tensor, the members first, so that nothing else tells them apart.

    Attributes:
        pixels: (2 N, 3, H, W) uint8.
        labels: (2 N,) int64; None for images without classes.
        count: N.
        seed: of views and of resampling.
    """

    pixels: Tensor
    labels: Tensor | None
    count: int
    seed: int
    progress: Progress

    def on(self, trained: _Trained, reference: _Trained | None) -> Iterator[Membership]:
        """Yield every attack on an obfuscator."""
        for name, predict in trained.predictions.items() if self.labels is not None else ():
            confidence = self.confidence(predict)
            yield self.judged("obfuscator", "loss", name, confidence)
            if reference is not None:
                ratio = likelihood_ratio(confidence, self.confidence(reference.predictions[name]))
                yield self.judged("obfuscator", "likelihood ratio", name, ratio)
        similarity = self.similarity(trained.target.observe)
        yield self.judged("obfuscator", "similarity of views", "payload", similarity)
        if reference is not None:
            less = similarity - self.similarity(reference.target.observe)
            yield self.judged("obfuscator", "similarity of views, less the reference's", "payload", less)

    def confidence(self, predict: Predict) -> Tensor:
        assert self.labels is not None
        return label_confidence(predict, self.pixels, self.labels)

    def similarity(self, observe: Predict) -> Tensor:
        return view_similarity(observe, self.pixels, seed=self.seed, progress=self.progress)

    def judged(self, subject: Subject, attacker: str, signal: str, scores: Tensor) -> Membership:
        """Return how well (2 N,) scores tell members from others."""
        found = detection(scores[: self.count], scores[self.count :], seed=self.seed)
        return Membership(
            subject=subject, attacker=attacker, signal=signal, members=self.count, others=self.count, detection=found
        )


def membership_checks(train: ImageSet, *, progress: Progress = silent) -> tuple[SanityCheck, ...]:
    """Check that attackers find out networks that learned a few images by heart; from the cache if that was done."""
    code = code_sha256(__file__, *(part.__file__ for part in (membership, identification, encoders, measured)))
    of = (code, torch.__version__, train.sha256, len(train))
    return cached("membership-check", of, tuple[SanityCheck, ...], partial(_checks, train, progress))


def _checks(train_set: ImageSet, progress: Progress) -> tuple[SanityCheck, ...]:
    """Overfit on images with labels at random, which can only be learned by heart, and on views of a few images."""
    count = min(_CONTROL_IMAGES, len(train_set) // 2)
    if count < LEAST_IMAGES:
        raise AuditError(f"the check of the attacks needs at least {2 * LEAST_IMAGES} images, got {len(train_set)}")
    source = torch.Generator().manual_seed(0)
    pixels = train_set.images[torch.randperm(len(train_set), generator=source)[: 2 * count]]
    pixels = F.interpolate(pixels.float(), size=(_CONTROL_SIDE, _CONTROL_SIDE), mode="area").byte()
    labels = torch.randint(_CONTROL_CLASSES, (2 * count,), generator=source)
    run = _Attack(pixels, labels, count, 0, progress)
    own, other = (_by_heart(pixels[part], labels[part], progress) for part in (slice(count), slice(count, None)))
    encoder = _encoder(pixels[:count], progress)
    confidence = run.confidence(own)
    scores = {
        "loss": confidence,
        "likelihood ratio": likelihood_ratio(confidence, run.confidence(other)),
        "similarity of views": run.similarity(encoder),
    }
    return tuple(_check(run.judged("obfuscator", name, "check", of)) for name, of in scores.items())


def _check(found: Membership) -> SanityCheck:
    auc = found.detection.auc
    return SanityCheck(
        name=f"membership inference by {found.attacker}, a network that learned its images by heart",
        passed=auc >= _CONTROL_AUC and found.infers,
        measured=f"AUC {auc:.3f}, {found.members} members and {found.others} others",
        needed=f"AUC of at least {_CONTROL_AUC}, and above 0.5 with its whole interval",
        detail="few images, many steps, and labels at random or views of these images alone",
    )


def _by_heart(images: Tensor, labels: Tensor, progress: Progress) -> Predict:
    """Return logits of a network that has learned (N, 3, H, W) uint8 with (N,) labels."""
    inputs = images.float() / 255
    net = _fresh(inputs, _CONTROL_CLASSES)
    losses = (F.cross_entropy(net(inputs), labels) for _ in iter(int, 1))
    train(net, losses, _control_budget(_CLASSIFIER_STEPS, progress), learning_rate=3e-3)
    return lambda x: net(x.float() / 255).detach()


def _encoder(images: Tensor, progress: Progress) -> Predict:
    """Return the payload of an encoder that gives views of one image the same features, by training on (N, ...) alone.

    Source: SimCLR, Chen et al. 2020, the loss.
    """
    source = torch.Generator().manual_seed(0)
    net, own = _fresh(images.float() / 255, 32), torch.arange(len(images))

    def losses() -> Iterator[Tensor]:
        while True:
            first, second = (F.normalize(net(another_view(images, source).float() / 255)) for _ in range(2))
            yield F.cross_entropy(10 * first @ second.T, own)

    train(net, losses(), _control_budget(_ENCODER_STEPS, progress), learning_rate=3e-3)
    return lambda x: net(x.float() / 255).detach()


def _fresh(inputs: Tensor, outputs: int) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(inputs, outputs)


def _control_budget(steps: int, progress: Progress) -> AttackBudget:
    return AttackBudget(BATCH * steps, 0, progress=progress, stage="check of membership inference")
