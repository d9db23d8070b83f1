"""Is the attacker broken? What he must manage before anybody believes that he failed.

On maps whose leakage is known, the decoders of the audit must find it, and no more than it. That does not depend on
the obfuscator: it is measured once for images, budget and attackers, and kept. What an audit's own trials tell of
the attackers is asked in `sfumato.lab.audit.consistency`.

Source: Carlini et al. 2019, section 5 ("sanity checks"); the figures are this project's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab import attacks, models
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import Attacker, Effort
from sfumato.lab.attacks.registry import ATTACKERS, CONTROLLED, STRONG
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, Pairs, Threat
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import remembered
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation import measures
from sfumato.lab.evaluation.measures import measure, psnr_db

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
"""So many times the images of the other controls: it has no linear estimate to start from."""
ORACLE_LOW, ORACLE_HIGH = 0.99, 1.05
"""Error on the label-only oracle, over the class mean's: below is more than can be known, above is a lame decoder."""
_TEST_IMAGES = 500
_ORACLE_IMAGES = 10_000


@dataclass(frozen=True)
class Control:
    """One question to the attackers.

    Attributes:
        name: what is asked.
        passed: None if it could not be asked.
        measured: the answer, in words.
        needed: what it had to be, in words.
        detail: of whom, and why.
    """

    name: str
    passed: bool | None
    measured: str
    needed: str
    detail: str = ""


def blur(images: Tensor) -> Tensor:
    """A light Gaussian blur: (N, C, H, W) float32 -> the same shape."""
    reach = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-reach.square() / (2 * BLUR_SIGMA**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(F.pad(images, (3, 3, 0, 0), mode="reflect"), kernel, groups=images.shape[1])
    kernel = kernel.transpose(2, 3)
    return F.conv2d(F.pad(rows, (0, 0, 3, 3), mode="reflect"), kernel, groups=images.shape[1])


def fold(images: Tensor) -> Tensor:
    """Loses nothing, and cannot be undone by a linear map: (N, 3, H, W) float32 in [0, 1] -> the same.

    Green is inverted where red is bright, blue where green was.
    """
    red, green, blue = images.unbind(dim=1)
    return torch.stack([red, torch.where(red < 0.5, green, 1 - green), torch.where(green < 0.5, blue, 1 - blue)], dim=1)


def decoder_controls(
    train: ImageSet,
    test: ImageSet,
    *,
    images: int,
    device: torch.device,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Control]:
    """The control matrix: decoders against maps whose leakage is known. From the cache if it was measured before.

    Args:
        train: images to learn from.
        test: images to reconstruct.
        images: training images that each strong decoder sees; the paper's sees `PAPER_SHARE` times as many.
        device: to train on.
        progress: is told what is tried, and (done, total).

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    of = _of(train, test, images, device)
    rows = remembered("controls", of, lambda: _decoder_controls(train, test, images, device, progress))
    return [Control(**row) for row in rows]


def _decoder_controls(
    train: ImageSet, test: ImageSet, images: int, device: torch.device, progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    height, width = train.images.shape[2:]
    test = test.subset(_TEST_IMAGES)
    means = class_means(train)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_ORACLE_IMAGES]
    scenes: list[tuple[str, Pairs, Tensor]] = [
        ("identity", FreshPairs(train.images, lambda x: x), test.images.float() / 255),
        ("light blur", FreshPairs(train.images, blur), blur(test.images.float() / 255)),
        ("folded colours", FreshPairs(train.images, fold), fold(test.images.float() / 255)),
        ("label-only oracle", FixedPairs(train.images[some], means[train.labels[some]]), means[test.labels]),
    ]
    class_mean = measure(means[test.labels], test.images).mse
    found: list[Control] = []
    for scene, pairs, observed in scenes:
        knowledge = Knowledge(Threat.WHITE_BOX, height, width, pairs)
        straight = _attack(Linear(), knowledge, observed, test, Effort(0, 0, device=device))
        for name in CONTROLLED:
            if scene == "folded colours" and name not in STRONG:
                continue
            what = f"{name} on the {scene}"
            share = 1 if name in STRONG else PAPER_SHARE
            effort = Effort(share * images, 0, device=device, progress=partial(progress, what))
            error = _attack(ATTACKERS[name], knowledge, observed, test, effort)
            found.append(_judge(scene, name, error, straight, class_mean))
    return [asdict(control) for control in found]


def _attack(attacker: Attacker, knowledge: Knowledge, observed: Tensor, test: ImageSet, effort: Effort) -> float:
    prepared = attacker.prepare(knowledge, effort)
    return measure(torch.cat([prepared.reconstruct(part) for part in torch.split(observed, 250)]), test.images).mse


def _judge(scene: str, name: str, error: float, straight: float, class_mean: float) -> Control:
    reached = psnr_db(error)
    if scene == "label-only oracle":
        share = error / class_mean
        return Control(
            f"{name}, {scene}",
            ORACLE_LOW <= share <= ORACLE_HIGH,
            f"MSE {error:.4f}, {share:.3f} of the class mean's",
            f"{ORACLE_LOW} to {ORACLE_HIGH} of {class_mean:.4f}",
            "images that tell the class alone; less is more than anybody can know",
        )
    if scene == "folded colours":
        needed = psnr_db(straight) + FOLDING_GAIN_DB
        detail = "a lossless map that no linear attacker undoes: is anything learned?"
    else:
        needed = {"identity": IDENTITY_DB, "light blur": BLUR_DB}[scene]
        lost = "nothing is lost" if scene == "identity" else f"sigma {BLUR_SIGMA:g} pixel"
        detail = f"{lost}; least squares, where the decoder starts, has most of it"
    if name not in STRONG:
        needed, detail = psnr_db(class_mean) + PAPER_GAIN_DB, "the paper's own decoder, a weak autoencoder"
    return Control(f"{name}, {scene}", reached >= needed, f"{reached:.2f} dB", f"at least {needed:.2f} dB", detail)


def _of(train: ImageSet, test: ImageSet, images: int, device: torch.device) -> str:
    """All that the answer depends on: attackers' code, torch, images, budget."""
    folder = Path(str(attacks.__file__)).parent
    beside = [Path(__file__), Path(__file__).with_name("references.py")]
    lab = [Path(models.__file__).parent.glob("*.py"), [Path(str(measures.__file__))]]
    files = sorted([*folder.glob("*.py"), *beside, *(file for part in lab for file in part)])
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    facts = (torch.__version__, images, train.sha256, test.sha256, len(train), len(test), device.type)
    return f"{code} {facts}"
