"""Maximal entropy of an adversary's prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.baselines.fit import Encoded, Loss
from sfumato.lab.baselines.method import Training

LEVELS = 8
BLOCK = 4


class MaxEntropy(Encoded):
    """An encoder with cross-entropy less a weight times the entropy of an adversary's prediction.

    The paper's adversary predicts a labelled attribute. Images here have no such label, so the attribute is the
    brightness of every block of 4x4 pixels, in 8 levels that are equally frequent in the training images. The class
    hardly determines it, and an adversary at maximal entropy knows nothing of the image at this resolution. The
    classifier stays frozen; it replaces the paper's predictor.

    Source: Roy and Boddeti 2019 (encoder: maximum entropy; adversary: maximum likelihood).
    """

    summary = "an encoder that keeps an adversary from predicting every 4x4 block's brightness"
    source = "Roy and Boddeti 2019"
    strength_help = "the weight of the adversary's entropy relative to the cross-entropy"
    default = 0.3

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """See `Encoded`."""
        brightness = block_brightness(training.images[:: max(1, len(training.images) // 2000)].float() / 255)
        levels = torch.arange(1, LEVELS) / LEVELS
        edges = torch.quantile(brightness.flatten()[:1_000_000], levels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            adversary = _adversary()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            truth = torch.bucketize(block_brightness(images), edges)
            likelihood = F.cross_entropy(adversary(obfuscated.detach()), truth)  # moves the adversary alone
            adversary.requires_grad_(False)
            entropy = mean_entropy(adversary(obfuscated))  # moves the encoder alone
            adversary.requires_grad_(True)
            # Subtracted from the most that is possible, so that the loss is never negative.
            uncertainty = math.log(LEVELS) - entropy
            return training.classification_loss(obfuscated, labels) + self.weight * uncertainty + likelihood

        return loss, [adversary]


def block_brightness(images: Tensor) -> Tensor:
    """Return means over colours and blocks: (N, 3, H, W) float -> (N, H / 4, W / 4)."""
    return F.avg_pool2d(images.mean(dim=1, keepdim=True), BLOCK)[:, 0]


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the predictions in nats, averaged over N, H and W; logits are (N, levels, H, W)."""
    logs = logits.float().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def _adversary() -> nn.Sequential:
    """Obfuscated images (N, 3, H, W) -> logits (N, levels, H / 4, W / 4)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, BLOCK, stride=BLOCK),
        nn.LeakyReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(64, LEVELS, 1),
    )
