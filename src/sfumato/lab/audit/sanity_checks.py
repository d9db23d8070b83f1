"""Sanity checks of the attackers: what they must manage before a failed attack means anything.

On maps whose leakage is known, the decoders of the audit must find it, and no more than it. That does not depend on
the obfuscator: it is measured once for images, budget and attackers, and cached (`decoder_checks`). What an audit's own
trials say of the attackers is checked by `trial_checks`.

Source: Carlini et al. 2019, section 5 ("sanity checks"); the figures are this project's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab import attacks, models
from sfumato.lab.attacks.decoders import PAPER
from sfumato.lab.attacks.fit import FLAT, flattened
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.registry import ATTACKERS, CHECKED, STRONG
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Pairs, Threat
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import cached
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

    Args:
        train: images to learn from.
        test: images to reconstruct.
        images: training images that each strong decoder sees; the paper's sees `PAPER_SHARE` times as many.
        device: to train on.
        progress: see `sfumato.progress.Progress`.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    of = _of(train, test, images, device)
    kind = tuple[SanityCheck, ...]
    return cached("sanity-checks", of, kind, lambda: _decoder_checks(train, test, images, device, progress))


def _decoder_checks(
    train: ImageSet, test: ImageSet, images: int, device: torch.device, progress: Progress
) -> tuple[SanityCheck, ...]:
    height, width = train.images.shape[2:]
    test = test.subset(_TEST_IMAGES)
    means = class_means(train)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_ORACLE_IMAGES]
    maps: list[tuple[str, Pairs, Tensor]] = [
        ("identity", FreshPairs(train.images, lambda x: x), test.images.float() / 255),
        ("light blur", FreshPairs(train.images, blur), blur(test.images.float() / 255)),
        ("folded colours", FreshPairs(train.images, fold), fold(test.images.float() / 255)),
        ("label-only oracle", FixedPairs(train.images[some], means[train.labels[some]]), means[test.labels]),
    ]
    class_mean = measure(means[test.labels], test.images).mse
    found = []
    for of, pairs, observed in maps:
        knowledge = Knowledge(Threat.WHITE_BOX, height, width, pairs)
        linear = _error(Linear(), knowledge, observed, test, AttackBudget(0, 0, device=device))
        for name in CHECKED:
            if of == "folded colours" and name not in STRONG:
                continue
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
    if of == "label-only oracle":
        share = error / class_mean
        return SanityCheck(
            name=f"{name}, {of}",
            passed=ORACLE_LOW <= share <= ORACLE_HIGH,
            measured=f"MSE {error:.4f}, {share:.3f} of the class mean's",
            needed=f"{ORACLE_LOW} to {ORACLE_HIGH} of {class_mean:.4f}",
            detail="images that give the class alone; a lower error is more than can be known",
        )
    if name not in STRONG:
        needed, detail = psnr_db(class_mean) + PAPER_GAIN_DB, "the paper's own decoder, a weak autoencoder"
    elif of == "folded colours":
        needed = psnr_db(linear) + FOLDING_GAIN_DB
        detail = "a lossless map that no linear attacker undoes: is anything learned?"
    else:
        needed = {"identity": IDENTITY_DB, "light blur": BLUR_DB}[of]
        lost = "nothing is lost" if of == "identity" else f"sigma {BLUR_SIGMA:g} pixel"
        detail = f"{lost}; least squares, where the decoder starts, has most of it"
    reached = psnr_db(error)
    return SanityCheck(
        name=f"{name}, {of}",
        passed=reached >= needed,
        measured=f"{reached:.2f} dB",
        needed=f"at least {needed:.2f} dB",
        detail=detail,
    )


def _of(train: ImageSet, test: ImageSet, images: int, device: torch.device) -> str:
    """All that the checks depend on: attackers' code, torch, images, budget."""
    folder = Path(str(attacks.__file__)).parent
    own = [Path(__file__), Path(__file__).with_name("references.py")]
    lab = [*Path(models.__file__).parent.glob("*.py"), Path(str(measures.__file__))]
    files = sorted([*folder.glob("*.py"), *own, *lab])
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    facts = (torch.__version__, images, train.sha256, test.sha256, len(train), len(test), device.type)
    return f"{code} {facts}"


def trial_checks(trials: Sequence[DoneTrial], class_mean_mse: float) -> tuple[SanityCheck, ...]:
    """Check the attackers by the audit's own trials.

    Args:
        trials: those with figures.
        class_mean_mse: the error of the class mean.
    """
    done = [trial for trial in trials if trial.views == 1]
    return _more_pairs(done), _white_box(done), _learned(done, class_mean_mse)


def _more_pairs(done: list[DoneTrial]) -> SanityCheck:
    best: dict[int, float] = {}
    for trial in done:
        if trial.threat is Threat.PAIRS and trial.pairs is not None:
            best[trial.pairs] = min(best.get(trial.pairs, 1e9), trial.mse_compared)
    name, needed = "more pairs do not hurt", f"at most {TOLERANCE} times the error with fewer"
    if len(best) < 2:
        return SanityCheck(name=name, passed=None, measured="fewer than two numbers of pairs were tried", needed=needed)
    counts = sorted(best)
    passed = all(best[more] / best[fewer] <= TOLERANCE for fewer, more in pairwise(counts))
    measured = ", ".join(f"{count:,}: {best[count]:.4f}" for count in counts)
    detail = "best MSE by number of known pairs"
    return SanityCheck(name=name, passed=passed, measured=measured, needed=needed, detail=detail)


def _white_box(done: list[DoneTrial]) -> SanityCheck:
    def best(threat: Threat) -> float:
        return min((trial.mse_compared for trial in done if trial.threat is threat), default=float("inf"))

    white, black = best(Threat.WHITE_BOX), best(Threat.PAIRS)
    name, needed = "the white box does not lose to the black box", f"at most {TOLERANCE} times its error"
    if float("inf") in (white, black):
        return SanityCheck(name=name, passed=None, measured="not both were tried", needed=needed)
    measured, passed = f"{white:.4f} against {black:.4f}", white <= TOLERANCE * black
    return SanityCheck(name=name, passed=passed, measured=measured, needed=needed, detail="best MSE of each")


def _learned(done: list[DoneTrial], class_mean_mse: float) -> SanityCheck:
    name = "the best learned attacker has learned all that it can"
    needed = f"reconstructed, or: it learned, and the last third of the training changed under {100 * FLAT:g} %"
    learned = [trial for trial in done if trial.curve]
    if not learned:
        return SanityCheck(name=name, passed=None, measured="no learned attacker was tried", needed=needed)
    best = min(learned, key=lambda trial: trial.mse_compared)
    passed, measured = _has_learned(best, done, class_mean_mse)
    detail = f"{best.attacker}, {best.threat}"
    return SanityCheck(name=name, passed=passed, measured=measured, needed=needed, detail=detail)


def _has_learned(best: DoneTrial, done: list[DoneTrial], class_mean_mse: float) -> tuple[bool, str]:
    after = f"after {best.images_seen:,} images"
    errors = [error for _, error in best.curve]
    if best.mse_compared < RECONSTRUCTED_BELOW:
        return True, "the image is reconstructed, nothing is left to gain"
    if not flattened(best.curve):
        return False, f"still changing {after}"
    if min(errors) < (1 - FLAT) * errors[0]:
        return True, f"flat {after}"
    # A network that never left its start shows nothing, unless one that began with nothing came to the same end,
    # and that is better than the mean image, which takes no learning.
    fresh = min((trial.mse_compared for trial in done if trial.attacker == PAPER.name), default=float("inf"))
    confirmed = fresh <= min(TOLERANCE * best.mse_compared, ORACLE_HIGH * class_mean_mse)
    words = "ends there too" if confirmed else "is not as far"
    return confirmed, f"where it began {after}; a decoder that began with nothing {words}, at MSE {fresh:.4f}"
