"""The contents of `advice.json`: what was measured of each way, and what follows for three policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfumato.artifacts.files import write_json
from sfumato.lab.audit.schema import Finding
from sfumato.lab.evaluation.results import Result, read_object

Kind = Literal["local", "gate", "sketch", "obfuscator", "thumbnail", "blur", "pixelate", "plain"]
Policy = Literal["no recognisable image leaves", "few images leave", "least bytes"]


@dataclass(frozen=True)
class Leak:
    """What an audit found.

    Attributes:
        excess_leakage: of the best attacker, a lower bound; 0 is the label alone, 1 the image.
        attacker: that one.
        budget: of the attackers.
        finding: the audit's verdict.
    """

    excess_leakage: float
    attacker: str
    budget: str
    finding: Finding


@dataclass(frozen=True)
class Way:
    """One way to have an image classified, as measured.

    Attributes:
        name: unique.
        kind: "gate" sends the images in the clear that a local net is unsure of; the kinds after "obfuscator" send
            every image, changed or not.
        accuracy: share of the test images that get their label, in [0, 1]; agreement with the classifier if the images
            have no labels.
        test_images: how many were measured.
        offload_rate: share of the images of which anything is sent, in [0, 1].
        payload_bytes: mean over all images, without what a protocol adds.
        padded_bytes: the same if each payload is filled up to the longest one; None where all have one length.
        accuracy_from_size: how often the size of the payload alone gives its class; None where all have one length.
        device_ms: on the device, one image on one thread of this machine; None if not measured.
        cloud_ms: of the classifier, per image, likewise.
        bits: about an image, at most; 0 if nothing is sent.
        at_least: a net's training was shorter than its schedule, or saw fewer views, so that the accuracy is a lower
            bound.
        threshold: of a gate: images with a lower probability are sent.
        bundle: the folder of the bundle to deploy, if there is one.
        audit: what an audit found; None if there is none.
    """

    name: str
    kind: Kind
    accuracy: float
    test_images: int
    offload_rate: float
    payload_bytes: float
    bits: float
    padded_bytes: float | None = None
    accuracy_from_size: float | None = None
    device_ms: float | None = None
    cloud_ms: float | None = None
    at_least: bool = False
    threshold: float | None = None
    bundle: str | None = None
    audit: Leak | None = None


@dataclass(frozen=True)
class Part:
    """One part of the work.

    Attributes:
        name: "images", the architecture of a net, or "sketch".
        seconds: that it took.
        epochs: of a training, as planned.
        whole: the epochs of the whole schedule.
        finished: of the planned ones, when the time was up.
        bundle: the folder of what was trained.
        views: of each training image, that the teacher was computed on; 0 for new ones in each epoch.
    """

    name: str
    seconds: float
    epochs: int = 0
    whole: int = 0
    finished: int = 0
    bundle: str | None = None
    views: int = 0

    @property
    def at_least(self) -> bool:
        """Whether a longer training might give a more accurate net."""
        return self.finished < self.whole or self.views > 0


@dataclass(frozen=True)
class Measurements:
    """All ways, measured on the same images.

    Attributes:
        classifier: the folder of its bundle.
        data: the source of the images.
        folder: of this advice.
        minutes: that were given in all.
        identity: of classifier and images; measurements of others cannot be joined.
        measure: of `Way.accuracy`.
        chance: share of the most frequent class of the test images.
        ways: in the order in which they were measured.
        options: further ones of the command that a longer call needs, too.
        missing: local nets within the budget that are not trained yet.
    """

    classifier: str
    data: str
    folder: str
    minutes: float
    identity: str
    measure: Literal["accuracy", "agreement"]
    chance: float
    ways: tuple[Way, ...]
    options: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """The way that a policy leads to.

    Attributes:
        policy: what must hold.
        way: its name; None if nothing that was measured meets the policy.
        sentences: why.
        provisional: it speaks for sending something, and a local net might still become as good.
        next: the command to type.
    """

    policy: Policy
    way: str | None
    sentences: tuple[str, ...]
    provisional: bool
    next: str


@dataclass(frozen=True)
class Advice(Result):
    """The contents of `advice.json`; complete once every part is done."""

    measured: Measurements
    recommendations: tuple[Recommendation, ...]
    parts: tuple[Part, ...] = ()
    left_out: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the file.

        Raises:
            BundleError: the disk refuses.
        """
        write_json(file, self.to_json())

    @classmethod
    def read(cls, file: Path) -> Advice | None:
        """Read the file; return None if there is none.

        Raises:
            ResultsError: it is damaged.
        """
        found = read_object(file)
        return None if found is None else cls.from_json(found)
