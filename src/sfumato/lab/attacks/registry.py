"""All attackers that reconstruct images, by name."""

from __future__ import annotations

from sfumato.lab.attacks.codewords import Codewords
from sfumato.lab.attacks.decoders import PAPER, RESIDUAL, RESIDUAL_GAN, RESIDUAL_SSIM, UNET
from sfumato.lab.attacks.deep_image_prior import DeepImagePrior
from sfumato.lab.attacks.guided import GuidedPrior
from sfumato.lab.attacks.joint import JointDeobfuscator
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.posterior import PosteriorSampler
from sfumato.lab.attacks.protocol import Attacker
from sfumato.lab.attacks.search import PriorSearch
from sfumato.lab.attacks.total_variation import TotalVariation
from sfumato.lab.attacks.unpaired import Unpaired

_ALL: tuple[Attacker, ...] = (
    Linear(),
    Codewords(),
    JointDeobfuscator(),
    RESIDUAL,
    UNET,
    PAPER,
    RESIDUAL_SSIM,
    RESIDUAL_GAN,
    TotalVariation(),
    DeepImagePrior(),
    PosteriorSampler(),
    GuidedPrior(),
    PriorSearch(),
    Unpaired(),
)

ATTACKERS: dict[str, Attacker] = {attacker.name: attacker for attacker in _ALL}
STRONG = (RESIDUAL.name, UNET.name)
"""The decoders that sanity checks hold to the strict figures."""
CHECKED = (*STRONG, PAPER.name)
"""All decoders that have sanity checks of their own."""
GENERATIVE = (PosteriorSampler.name, GuidedPrior.name, PriorSearch.name)
"""Attackers that give one of the possible images instead of their mean; they have sanity checks, too."""
