"""Sanity checks of the attackers: what they must manage before a failed attack means anything.

On maps whose leakage is known, decoders must find it, and no more than it; that is measured once for images, budget and
attackers. `trial_checks` looks at an audit's own trials.

Source: Carlini et al. 2019, section 5 ("sanity checks"); the figures are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab import attacks, models
from sfumato.lab.attacks.decoders import PAPER
from sfumato.lab.attacks.fit import FLAT, flattened
from sfumato.lab.attacks.joint import JointDeobfuscator
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.registry import ATTACKERS, CHECKED, STRONG
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Pairs, Threat
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import cached, code_sha256
from sfumato.lab.audit.schema import DoneTrial, SanityCheck
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation import measures
from sfumato.lab.evaluation.measures import RECONSTRUCTED_BELOW, measure, psnr_db
from sfumato.progress import Progress, silent

IDENTITY_DB = 30.0
BLUR_DB = 25.0
BLUR_SIGMA = 1.0
"""In pixels."""
FOLDING_GAIN_DB = 0.3
"""By how much a network must beat least squares where only a network can."""
PAPER_GAIN_DB = 3.5
"""What the paper's decoder must gain over the class mean where nothing is lost: 5.5 dB as measured on CIFAR-10 with
6,000 training images, less some room. It squeezes the image through 4x4 places and begins with nothing."""
PAPER_SHARE = 4
"""It sees so many times the images of the others: it has no linear estimate to start from."""
ORACLE_LOW, ORACLE_HIGH = 0.99, 1.05
"""Error on the label-only oracle, over the class mean's: below is more than can be known, above is a weak decoder."""
TOLERANCE = 1.02
"""An attacker that knows more may be so many times worse: chance of one training."""
_TEST_IMAGES = 500
_ORACLE_IMAGES = 10_000


def blur(images: Tensor) -> Tensor:
    """Blur slightly, by a Gaussian: (N, C, H, W) float32 -> the same shape."""
    reach = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-reach.square() / (2 * BLUR_SIGMA**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(F.pad(images, (3, 3, 0, 0), mode="reflect"), kernel, groups=images.shape[1])
    kernel = kernel.transpose(2, 3)
    return F.conv2d(F.pad(rows, (0, 0, 3, 3), mode="reflect"), kernel, groups=images.shape[1])


def fold(images: Tensor) -> Tensor:
    """Fold colours; loses nothing, and no linear map undoes it: (N, 3, H, W) float32 in [0, 1] -> the same.

    Green is inverted where red is bright, blue where green was.
    """
    red, green, blue = images.unbind(dim=1)
    return torch.stack([red, torch.where(red < 0.5, green, 1 - green), torch.where(green < 0.5, blue, 1 - blue)], dim=1)


def decoder_checks(
    train: ImageSet, test: ImageSet, *, images: int, device: torch.device, progress: Progress = silent
) -> tuple[SanityCheck, ...]:
    """Try the decoders on maps whose leakage is known; from the cache if that was done before.

    Each strong decoder sees `images` training images, the paper's `PAPER_SHARE` times as many.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    of = checks_depend_on(train, test, images, device)
    find = partial(_decoder_checks, train, test.subset(_TEST_IMAGES), images, device, progress)
    return cached("sanity-checks", of, tuple[SanityCheck, ...], find)


def checks_depend_on(train: ImageSet, test: ImageSet, images: int, device: torch.device) -> tuple[object, ...]:
    """Return all that what sanity checks find depends on, the code of the attackers included."""
    folders = [Path(str(attacks.__file__)).parent, Path(models.__file__).parent]
    files = [Path(__file__).with_name(f"{name}.py") for name in ("sanity_checks", "sampler_checks", "references")]
    files += [Path(str(measures.__file__)), *(file for folder in folders for file in folder.glob("*.py"))]
    return (
        code_sha256(*sorted(files)),
        torch.__version__,
        images,
        train.sha256,
        test.sha256,
        len(train),
        len(test),
        device.type,
    )


def _decoder_checks(
    train: ImageSet, test: ImageSet, images: int, device: torch.device, progress: Progress
) -> tuple[SanityCheck, ...]:
    means, originals, (height, width) = class_means(train), test.images.float() / 255, train.images.shape[2:]
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_ORACLE_IMAGES]
    maps: list[tuple[str, Pairs, Tensor]] = [
        ("identity", FreshPairs(train.images, lambda x: x), originals),
        ("light blur", FreshPairs(train.images, blur), blur(originals)),
        ("folded colours", FreshPairs(train.images, fold), fold(originals)),
        ("label-only oracle", FixedPairs(train.images[some], means[train.labels[some]]), means[test.labels]),
    ]
    class_mean = measure(means[test.labels], test.images).mse
    found = []
    for of, pairs, observed in maps:
        knowledge = Knowledge(Threat.WHITE_BOX, height, width, pairs)
        linear = _error(Linear(), knowledge, observed, test, AttackBudget(0, 0, device=device))
        for name in STRONG if of == "folded colours" else CHECKED:
            seen = images if name in STRONG else PAPER_SHARE * images
            stage = f"sanity check: {name} on the {of}"
            budget = AttackBudget(seen, 0, device=device, progress=progress, stage=stage)
            error = _error(ATTACKERS[name], knowledge, observed, test, budget)
            found.append(_check(of, name, error, linear, class_mean))
    return tuple(found)


def _error(attacker: Attacker, knowledge: Knowledge, observed: Tensor, test: ImageSet, budget: AttackBudget) -> float:
    prepared = attacker.prepare(knowledge, budget)
    return measure(torch.cat([prepared.reconstruct(part) for part in torch.split(observed, 250)]), test.images).mse


def _check(of: str, name: str, error: float, linear: float, class_mean: float) -> SanityCheck:
    title = f"{name}, {of}"
    if of == "label-only oracle":
        share = error / class_mean
        return SanityCheck(
            name=title,
            passed=ORACLE_LOW <= share <= ORACLE_HIGH,
            measured=f"MSE {error:.4f}, {share:.3f} of the class mean's",
            needed=f"{ORACLE_LOW} to {ORACLE_HIGH} of {class_mean:.4f}",
            detail="images that give the class alone; a lower error is more than can be known",
        )
    started = "least squares, where the decoder starts, has most of it"
    needed, detail = {
        "identity": (IDENTITY_DB, f"nothing is lost; {started}"),
        "light blur": (BLUR_DB, f"sigma {BLUR_SIGMA:g} pixel; {started}"),
        "folded colours": (
            psnr_db(linear) + FOLDING_GAIN_DB,
            "a lossless map that no linear attacker undoes: is anything learned?",
        ),
    }[of]
    if name not in STRONG:
        needed, detail = psnr_db(class_mean) + PAPER_GAIN_DB, "the paper's own decoder, a weak autoencoder"
    reached, wanted = psnr_db(error), f"at least {needed:.2f} dB"
    passed = reached >= needed
    return SanityCheck(name=title, passed=passed, measured=f"{reached:.2f} dB", needed=wanted, detail=detail)


def trial_checks(trials: Sequence[DoneTrial], class_mean_mse: float) -> tuple[SanityCheck, ...]:
    """Check the attackers by the audit's own trials; `class_mean_mse` is the error of the class mean."""
    done = [trial for trial in trials if trial.views == 1]
    flat = f"the last third of the training changed under {100 * FLAT:g} %"
    checks: dict[str, tuple[str, _Judged]] = {
        "more pairs do not hurt": (
            f"reconstructed, or at most {TOLERANCE} times the error with fewer",
            _more_pairs(done),
        ),
        "the white box does not lose to the black box": (
            f"reconstructed, or at most {TOLERANCE} times its error",
            _white_box(done),
        ),
        "the best learned attacker has learned all that it can": (
            f"reconstructed, or: it learned, and {flat}",
            _learned(done, class_mean_mse),
        ),
    }
    return tuple(
        SanityCheck(name=name, passed=passed, measured=measured, needed=needed, detail=detail)
        for name, (needed, (passed, measured, detail)) in checks.items()
    )


_Judged = tuple[bool | None, str, str]
"""Whether a check passed, what was measured, and the detail."""


def _more_pairs(done: list[DoneTrial]) -> _Judged:
    best: dict[int, float] = {}
    for trial in done:
        if trial.threat is Threat.PAIRS and trial.pairs is not None:
            best[trial.pairs] = min(best.get(trial.pairs, math.inf), trial.mse_compared)
    if len(best) < 2:
        return None, "fewer than two numbers of pairs were tried", ""
    counts = sorted(best)
    passed = all(_not_worse(best[more], best[fewer]) for fewer, more in pairwise(counts))
    return passed, ", ".join(f"{count:,}: {best[count]:.4f}" for count in counts), "best MSE by number of known pairs"


def _white_box(done: list[DoneTrial]) -> _Judged:
    trained = [trial for trial in done if trial.attacker != JointDeobfuscator.name]
    white, black = (
        min((trial.mse_compared for trial in trained if trial.threat is threat), default=math.inf)
        for threat in (Threat.WHITE_BOX, Threat.PAIRS)
    )
    if math.inf in (white, black):
        return None, "not both were tried", ""
    return _not_worse(white, black), f"{white:.4f} against {black:.4f}", "best MSE of each"


def _not_worse(error: float, other: float) -> bool:
    """Return whether an error is not above another one; of images that are reconstructed, no difference counts."""
    return error < RECONSTRUCTED_BELOW or error <= TOLERANCE * other


def _learned(done: list[DoneTrial], class_mean_mse: float) -> _Judged:
    best = min((trial for trial in done if trial.curve), key=lambda trial: trial.mse_compared, default=None)
    if best is None:
        return None, "no learned attacker was tried", ""
    of, after = f"{best.attacker}, {best.threat}", f"after {best.images_seen:,} images"
    errors = [error for _, error in best.curve]
    if best.mse_compared < RECONSTRUCTED_BELOW:
        return True, "the image is reconstructed, nothing is left to gain", of
    if not flattened(best.curve):
        return False, f"still changing {after}", of
    if min(errors) < (1 - FLAT) * errors[0]:
        return True, f"flat {after}", of
    # A network that never left its start shows nothing, unless one that began with nothing came to the same end,
    # and that is better than the mean image, which takes no learning.
    fresh = min((trial.mse_compared for trial in done if trial.attacker == PAPER.name), default=math.inf)
    confirmed = fresh <= min(TOLERANCE * best.mse_compared, ORACLE_HIGH * class_mean_mse)
    words = "ends there too" if confirmed else "is not as far"
    return confirmed, f"where it began {after}; a decoder that began with nothing {words}, at MSE {fresh:.4f}", of
