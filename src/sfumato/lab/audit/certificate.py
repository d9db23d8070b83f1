"""Bounds that noise, or a code of a few bits, puts on every attacker, also those that were not built yet.

With a code, the number of its values bounds how often the original is re-identified among any images; what it gives
away of the test images is counted in `sfumato.lab.audit.codes`. With noise that is added after the last step that
depends on the image there are three bounds:

- **Fisher information** bounds the error of unbiased attackers, without an assumption on the images. Learned ones are
  biased: they use what images look like, and may fall below it.
- **Fisher information and a prior** (van Trees) bounds the error of every attacker if images are Gaussian. Real ones
  have more structure, so that a strong attacker may fall below it, too.
- **The rate**, how many bits about the image can pass, bounds top-1 re-identification among N candidates (Fano). It
  needs only the covariance of the payload: no prior can break it.

Sources: Maeng et al. 2023, "Bounding the invertibility of privacy-preserving instance encoding using Fisher
information"; Gill and Levit 1995, the matrix form of van Trees' inequality; Cover and Thomas 2006, theorems 8.6.5
(Gaussian maximum entropy), 17.9.2 (Hadamard) and 2.10.1 (Fano).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.target import Noisy
from sfumato.lab.audit.bounds import Certificate, CodeFacts
from sfumato.lab.audit.codes import CANDIDATES
from sfumato.progress import Progress, silent

MAX_JOINT = 4096
"""Up to so many numbers an image, matrices over all pairs of them are formed; a 3x32x32 image has 3072."""
JACOBIANS = 4
"""Images whose Fisher information is computed: few, as each costs a backward pass for every number of the payload:
15 s on one core for 3072 numbers through 21 million multiply-accumulates."""
PROBES = 64
"""Random directions for each image where the trace of its Fisher information is estimated instead."""
_INFORMATION = {"gaussian": 1.0, "laplace": 2.0}
"""Fisher information of a location, times the variance of its noise."""
_EXTRA_BITS = {"gaussian": 0.0, "laplace": 0.5 * math.log2(math.pi / math.e)}
"""Entropy of Gaussian noise less that of this noise of the same variance, in bits a number."""
_BATCH = 64
_MAX_NUMBERS = 1 << 26

_ASSUMPTIONS = (
    "the noise of each number is independent, as the obfuscator states, and new for each image",
    "an image is sent once: sending it a second time adds information that is not counted",
    "averages over the images examined represent averages over all images of their kind; with few images the error "
    "bounds are a little too high",
)
_CODED = "the payload depends on the image through the code alone, as it states; candidates are equally likely"
_GATED = (
    "that an image is not sent counts as one more payload, and the candidates are all images, sent or not; for an "
    "attacker that knows that its image was sent the candidates are those that are sent"
)
_VIEWS = (
    "the identical image sent again tells nothing more; another view of the same scene tells as many bits again at most"
)
_UNBIASED = "mse_bound_unbiased holds for attackers without bias alone; learned attackers are biased"
_GAUSSIAN = "mse_bound_any holds if images are Gaussian with the covariance of those examined; real ones may fall below"
_ESTIMATED = "the trace of the Fisher information is estimated from random directions (Hutchinson), not exact"


def certify(noisy: object, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> Certificate:
    """Bound what any attacker can learn from the payload.

    Args:
        noisy: an obfuscator that satisfies `Noisy`.
        images: (N, 3, H, W) uint8, N at least 4; training images, more than numbers in an image for a good bound.
        seed: of the choice of images and directions.
        progress: its stage is "certificate".

    Raises:
        AuditError: the obfuscator adds no noise, or noise of an unknown kind; its mean has no gradient; what it says
            does not fit together; or there are too few images.
    """
    if not isinstance(noisy, Noisy):
        raise AuditError("the obfuscator is stochastic, but states none of its noise: there is no certificate")
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or len(images) < 4:
        raise AuditError(f"need at least 4 images (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    scale = _precision(noisy, images)
    source = torch.Generator().manual_seed(seed)
    count = min(len(images), _MAX_NUMBERS // max(len(scale), images[0].numel()))
    chosen = images[torch.randperm(len(images), generator=source)[: max(4, count)]]
    exact = chosen[0].numel() <= MAX_JOINT
    examined = chosen[:JACOBIANS]
    information, leakages = torch.zeros((), dtype=torch.float64), []
    for done, image in enumerate(examined):
        progress("certificate", done, len(examined))
        if exact:
            of_one = fisher_information(noisy, image)
            information = information + of_one
        leakages.append((float(of_one.trace()) if exact else fisher_trace(noisy, image, source)) / image.numel())
    progress("certificate", len(examined), len(examined))
    means = torch.cat([_mean(noisy, part).flatten(1) for part in torch.split(chosen, 250)])
    if not sum(leakages) and bool((means != means[0]).any()):
        raise AuditError("the payload follows the image, but its gradient is zero (rounded?): there is no certificate")
    bound = None
    if exact:
        covariance = torch.cov(chosen.flatten(1).T.double() / 255)
        bound = van_trees_mse(information / len(leakages), covariance)
    rate = rate_bits(means, noisy.noise_std().flatten(), noisy.noise_kind)
    return Certificate(
        dfil=sum(leakages) / len(leakages),
        mse_bound_unbiased=sum(1 / leakage if leakage else math.inf for leakage in leakages) / len(leakages),
        mse_bound_any=bound,
        rate_bits=rate,
        top1_bounds={n: fano_top1(rate, n) for n in CANDIDATES},
        images=len(chosen),
        jacobians=len(leakages),
        assumptions=(*_ASSUMPTIONS, _UNBIASED, _GAUSSIAN if exact else _ESTIMATED),
    )


def certify_code(bits: int, code: CodeFacts | None = None, *, gated: bool = False) -> Certificate:
    """Bound what any attacker can learn where the payload is made from a code of at least 1 bit alone.

    Among N candidates, all equally likely, no attacker re-identifies the original in more than `values / N` of cases:
    each payload points to one candidate at best. So up to N = values nothing is certified. With a gate, that nothing is
    sent counts as one payload more: `(values + 1) / N` over all images, sent or not.

    Args:
        bits: of the code.
        code: what was counted on images: how many codes can be reached, and whether there is a gate.
        gated: whether there is a gate, where nothing was counted.

    Source: see `sfumato.lab.audit.codes`.
    """
    gated = gated or (code is not None and code.silence is not None)
    payloads = (2.0**bits if code is None else code.values) + gated
    return Certificate(
        dfil=None,
        mse_bound_unbiased=None,
        mse_bound_any=None,
        rate_bits=math.log2(payloads),
        top1_bounds={n: min(1.0, payloads / n) for n in CANDIDATES},
        images=0,
        jacobians=0,
        assumptions=(_CODED, *([_GATED] if gated else []), _VIEWS),
        code=code,
    )


def fisher_information(noisy: Noisy, image: Tensor) -> Tensor:
    """Return the Fisher information of one observation about each change of an image (3, H, W) uint8.

    Returns:
        (3 * H * W, 3 * H * W) float64, `J^T diag(c / std^2) J` for the mean's Jacobian J; c is 1 for Gaussian
        noise and 2 for Laplace.

    Raises:
        AuditError: the mean has no gradient.
    """
    scale = _precision(noisy, image[None])
    total = torch.zeros(image.numel(), image.numel(), dtype=torch.float64)
    for rows in torch.arange(len(scale)).split(_BATCH):  # type: ignore[no-untyped-call]
        directions = torch.zeros(len(rows), len(scale))
        directions[torch.arange(len(rows)), rows] = scale[rows]
        pulled = _pull(noisy, image, directions)
        total += pulled.T @ pulled
    return total


def fisher_trace(noisy: Noisy, image: Tensor, source: torch.Generator) -> float:
    """Return the trace of `fisher_information`, estimated from `PROBES` directions, where the matrix is too large.

    Raises:
        AuditError: the mean has no gradient.

    Source: Hutchinson 1990.
    """
    scale = _precision(noisy, image[None])
    signs = (torch.randint(0, 2, (1, len(scale)), generator=source) * 2.0 - 1 for _ in range(PROBES))
    return sum(float(_pull(noisy, image, one * scale).square().sum()) for one in signs) / PROBES


def van_trees_mse(information: Tensor, covariance: Tensor) -> float:
    """Return the least mean squared error of any attacker, biased or not, on Gaussian images: `tr((F + C^-1)^-1) / d`.

    For a linear mean and Gaussian noise it is attained, by the posterior mean. F is the Fisher information averaged
    over images, C the covariance of the images, which may be singular: both (d, d).

    Source: Gill and Levit 1995, the multivariate inequality.
    """
    prior = covariance.double()
    shrinking = torch.eye(len(prior), dtype=torch.float64) + information.double() @ prior
    # (F + C^-1)^-1 = C (1 + F C)^-1, which needs no inverse of C.
    return float(torch.linalg.solve(shrinking.T, prior).trace() / len(prior))


def rate_bits(means: Tensor, noise_std: Tensor, noise_kind: str) -> float:
    """Return how many bits about an image can pass, at least 0: a bound on the mutual information with the payload.

    Of all distributions of one covariance a Gaussian has the most entropy, and its entropy is at most that of
    its coordinates, in any basis. The basis is the principal axes of one half of the images and the variances
    are those of the other half: taken from the same images, the rate would come out too low.

    Args:
        means: (N, D) float, the payload without the noise; N at least 4.
        noise_std: (D,) of each number's noise, positive.
        noise_kind: "gaussian" or "laplace".

    Source: Cover and Thomas 2006, theorems 8.6.5 and 17.9.2.
    """
    informative = means.amax(dim=0) > means.amin(dim=0)
    if not bool(informative.any()):
        return 0.0
    snr = (means[:, informative] / noise_std[informative]).double()
    first, second = snr[::2] - snr[::2].mean(dim=0), snr[1::2]
    bits = _capacity_bits(second.var(dim=0))
    if snr.shape[1] <= MAX_JOINT:
        axes = torch.linalg.eigh((first.T @ first).float()).eigenvectors.double()
        bits = min(bits, _capacity_bits((second @ axes).var(dim=0)))
    return bits + _EXTRA_BITS[noise_kind] * snr.shape[1]


def fano_top1(rate: float, candidates: int) -> float:
    """Return the highest top-1 re-identification rate among at least 2 equally likely candidates, in [1 / N, 1].

    `rate` bits pass about which candidate it is; where that bounds nothing, it is 1.0.

    Source: Fano's inequality in full, `log2 N - h(p) - (1 - p) log2(N - 1) <= rate` for a hit rate of p; it implies
    the better known `p <= (rate + 1) / log2 N`.
    """
    if rate >= math.log2(candidates):
        return 1.0
    low, high = 1 / candidates, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        missed = 1 - middle
        needed = middle * math.log2(middle * candidates)
        needed += missed * math.log2(missed * candidates / (candidates - 1)) if missed > 0 else 0.0
        low, high = (middle, high) if needed <= rate else (low, middle)
    return high


def _capacity_bits(snr: Tensor) -> float:
    return float(0.5 * snr.log1p().sum() / math.log(2))


def _precision(noisy: Noisy, images: Tensor) -> Tensor:
    """Square root of each number's Fisher information about its own mean, (D,) float32."""
    if noisy.noise_kind not in _INFORMATION:
        raise AuditError(f"noise of kind {noisy.noise_kind!r}: a certificate knows {' and '.join(_INFORMATION)}")
    std = noisy.noise_std().detach().float()
    mean = _mean(noisy, images[:1])
    if mean.shape[1:] != std.shape:
        raise AuditError(f"noise of shape {tuple(std.shape)} for the payload of shape {tuple(mean.shape[1:])}")
    if not bool((std.isfinite() & (std > 0)).all()):
        raise AuditError("some numbers of the payload have no noise: there is no certificate")
    return math.sqrt(_INFORMATION[noisy.noise_kind]) / std.flatten()


def _pull(noisy: Noisy, image: Tensor, directions: Tensor) -> Tensor:
    """Directions (B, D) float32 in the payload, pulled back through the Jacobian: (B, d) float64."""
    images = (image.float() / 255).repeat(len(directions), 1, 1, 1).requires_grad_()
    with torch.enable_grad():
        mean = noisy.mean(images)
    if not mean.requires_grad:
        raise AuditError("the mean of the payload has no gradient: there is no certificate")
    (pulled,) = torch.autograd.grad(mean, images, directions.reshape(mean.shape))
    return pulled.flatten(1).double()


@torch.no_grad()
def _mean(noisy: Noisy, images: Tensor) -> Tensor:
    return noisy.mean(images.float() / 255)
