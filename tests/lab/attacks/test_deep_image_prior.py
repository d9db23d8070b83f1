"""Inversion with an untrained network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.deep_image_prior import DeepImagePrior, Hourglasses
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, Knowledge, Threat


def smooth(count: int, seed: int, *, height: int = 16, width: int = 16) -> Tensor:
    """(N, 3, H, W) uint8, slow waves of colour."""
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 255).byte()


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 5, 1, 2)


def knowledge(module: nn.Module, images: Tensor) -> Knowledge:
    pairs = FixedPairs(images, module(images.float() / 255).detach())
    return Knowledge(Threat.WHITE_BOX, images.shape[2], images.shape[3], pairs, module)


def test_beats_the_mean_image_on_a_blur():
    known, truth = smooth(20, seed=0), smooth(4, seed=1).float() / 255
    prepared = DeepImagePrior().prepare(knowledge(Blur(), known), AttackBudget(images=0, steps=60))
    reconstructed = prepared.reconstruct(Blur()(truth))
    assert reconstructed.min() >= 0 and reconstructed.max() <= 1
    mean = known.float().mean(dim=0) / 255
    assert (reconstructed - truth).square().mean() < 0.3 * (mean - truth).square().mean()


def test_works_on_images_of_any_size_and_repeats_itself():
    known, truth = smooth(8, seed=0, height=13, width=18), smooth(2, seed=1, height=13, width=18).float() / 255
    prepared = DeepImagePrior().prepare(knowledge(nn.Identity(), known), AttackBudget(images=0, steps=3, seed=5))
    assert prepared.reconstruct(truth).shape == truth.shape
    assert torch.equal(prepared.reconstruct(truth), prepared.reconstruct(truth))


def test_each_network_draws_from_its_own_noise_alone():
    torch.manual_seed(0)
    nets = Hourglasses(torch.full((3, 3, 8, 8), 0.5))
    assert torch.allclose(nets(), torch.tensor(0.5))
    nn.init.normal_(nets.head.weight)
    before = nets().detach()
    nets.noise[:, : nets.noise.shape[1] // 3] += torch.randn_like(nets.noise[:, : nets.noise.shape[1] // 3])
    changed = (nets().detach() - before).abs().amax(dim=(1, 2, 3))
    assert changed[0] > 1e-3
    assert changed[1:].max() < 1e-6


def test_says_what_is_missing():
    known = knowledge(nn.Identity(), smooth(8, seed=0))
    with pytest.raises(AuditError, match="deep image prior needs the obfuscator with gradients"):
        DeepImagePrior().prepare(Knowledge(Threat.WHITE_BOX, 16, 16, known.pairs), AttackBudget(images=0, steps=1))
