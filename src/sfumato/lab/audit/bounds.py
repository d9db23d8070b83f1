"""What holds against every attacker, typed: exact statements about codes, and certificates."""

from __future__ import annotations

from typing import Literal

from sfumato.lab.audit.model import Model


class BestGuess(Model):
    """The best re-identification that any attacker can reach among so many of the test images; exact.

    Attributes:
        candidates: images to choose from, each equally likely.
        classes: whether they are of one class, which the attacker knows, or of all.
        top1: different codes among them, divided by their number; the mean over all such galleries.
    """

    candidates: int
    classes: Literal["one", "all"]
    top1: float


class Transmissions(Model):
    """What so many transmissions of one scene, each from another view of it, tell; the identical image tells no more.

    Attributes:
        count: k, the number of transmissions; with 1 the image itself is sent.
        bits: at most so many bits pass: k times those of one.
        observed: how many different sequences of codes the images have, for views that the attacker knows.
        images: how many images were tried.
        top1: the best re-identification among them, observed / images.
    """

    count: int
    bits: float
    observed: int
    images: int
    top1: float


class Silence(Model):
    """What it tells that an image is sent, or not; over the test images.

    Attributes:
        offload_rate: share that is sent.
        bits: entropy of that decision: at most so many bits about an image, and never more than 1.
        label_bits: of these, bits about the on-device prediction, which stays on the device if nothing is sent.
        top1: the best re-identification among all images, where that nothing is sent counts as one more payload.
        images: how many these are.
        sent_images: how many of them are sent.
        sent_top1: the best re-identification among those alone, by an attacker that knows that its image was sent;
            None if none is.
    """

    offload_rate: float
    bits: float
    label_bits: float
    top1: float
    images: int
    sent_images: int
    sent_top1: float | None


class CodeFacts(Model):
    """What a deterministic code tells, counted on the test images: no attacker does better, and one reaches it.

    Attributes:
        bits: of the code.
        values: how many codes can be reached at most. Among no more candidates than that nothing is certified.
        observed: how many codes the images have.
        images: how many images were counted.
        entropy_bits: of the codes: so many bits about which image it was pass, on average.
        best: the best re-identification.
        transmissions: of several views of one scene.
        silence: what the gate tells; None without one.
    """

    bits: int
    values: float
    observed: int
    images: int
    entropy_bits: float
    best: tuple[BestGuess, ...]
    transmissions: tuple[Transmissions, ...] = ()
    silence: Silence | None = None


class Certificate(Model):
    """Bounds that hold against every attacker, if the assumptions do.

    Attributes:
        dfil: Fisher information leakage, the mean over images and pixels, in 1 / (pixel value in [0, 1])^2. None
            without noise, like the two bounds that rest on it.
        mse_bound_unbiased: least mean squared error of unbiased attackers, for pixels in [0, 1]; infinite where the
            payload says nothing.
        mse_bound_any: least mean squared error of any attacker if images are Gaussian; None if not computed.
        rate_bits: at most so many bits about an image pass.
        top1_bounds: candidates -> the highest top-1 re-identification rate among them; 1.0 is no bound.
        images: over how many images the covariances were taken.
        jacobians: for how many of them the Fisher information was computed.
        assumptions: what the bounds rest on, in words.
        code: exact statements about a deterministic code; None where there is none, and in audits of early versions.
    """

    dfil: float | None
    mse_bound_unbiased: float | None
    mse_bound_any: float | None
    rate_bits: float
    top1_bounds: dict[int, float]
    images: int
    jacobians: int
    assumptions: tuple[str, ...]
    code: CodeFacts | None = None
