"""Inversion by optimisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, Knowledge, Threat
from sfumato.lab.attacks.total_variation import Inversion, TotalVariation, descend, total_variation


def smooth(count: int, seed: int) -> Tensor:
    """(N, 3, 16, 16) uint8, slow waves of colour."""
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=16, mode="bicubic").clamp(0, 1) * 255).byte()


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1)


class Mixing(nn.Module):
    """Invertible: colours mixed, squashed and turned about."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.stack([x[:, 0] - x[:, 1], x[:, 1] + x[:, 2], x.sum(dim=1)], dim=1)
        return torch.tanh(0.5 * mixed.flip(3))


def knowledge(module: nn.Module, images: Tensor) -> Knowledge:
    pairs = FixedPairs(images, module(images.float() / 255).detach())
    return Knowledge(Threat.WHITE_BOX, 16, 16, pairs, module)


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


@pytest.mark.parametrize("module", [nn.Identity(), Blur(), Mixing()], ids=["identity", "blur", "mixing"])
def test_reconstructs_what_can_be_inverted(module):
    truth = smooth(8, seed=1).float() / 255
    prepared = TotalVariation().prepare(knowledge(module, smooth(100, seed=0)), AttackBudget(images=0, steps=200))
    reconstructed = prepared.reconstruct(module(truth))
    assert reconstructed.min() >= 0 and reconstructed.max() <= 1
    assert psnr_db(reconstructed, truth) > 30


def test_goes_beyond_its_start():
    module, truth = Mixing(), smooth(8, seed=1).float() / 255
    known = knowledge(module, smooth(100, seed=0))
    few = TotalVariation().prepare(known, AttackBudget(images=0, steps=1)).reconstruct(module(truth))
    many = TotalVariation().prepare(known, AttackBudget(images=0, steps=200)).reconstruct(module(truth))
    assert psnr_db(many, truth) > psnr_db(few, truth) + 3


def test_the_variation_weight_smooths():
    truth = smooth(4, seed=1).float() / 255
    noisy = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    known = Inversion(nn.Identity(), lambda observed: observed, noisy, noisy, variance=0.05)
    rough, even = (descend(known, noisy, weight=weight, anchor=0, steps=100) for weight in (0.0, 2.0))
    assert total_variation(even).mean() < 0.5 * total_variation(rough).mean()
    assert psnr_db(even, truth) > psnr_db(rough, truth)


def test_total_variation_of_a_step():
    image = torch.zeros(1, 3, 4, 4)
    image[:, :, :, 2:] = 1
    assert float(total_variation(image)) == pytest.approx(1 / 3)


def test_settings_and_obfuscator_are_fixed_before_the_test_images_come():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    prepared = TotalVariation().prepare(knowledge(module, smooth(40, seed=0)), AttackBudget(images=0, steps=4))
    observed = module(smooth(8, seed=1).float() / 255).detach()
    together = prepared.reconstruct(observed)
    apart = torch.cat([prepared.reconstruct(one) for one in observed.split(1)])
    assert psnr_db(together, apart) > 50  # each test image is reconstructed without looking at the others
    assert torch.equal(prepared.reconstruct(observed), together)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_cloud_features_behind_what_payload_are_left_alone():
    images = smooth(60, seed=0)
    x = images.float() / 255
    wide = Knowledge(Threat.CLOUD, 16, 16, FixedPairs(images, torch.cat([x, 0 * x], dim=1)), nn.Identity())
    prepared = TotalVariation().prepare(wide, AttackBudget(images=0, steps=50))
    truth = smooth(4, seed=1).float() / 255
    assert psnr_db(prepared.reconstruct(torch.cat([truth, 0 * truth], dim=1)), truth) > 30


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_says_what_is_missing():
    known = knowledge(nn.Identity(), smooth(20, seed=0))
    without = Knowledge(Threat.WHITE_BOX, 16, 16, known.pairs)
    with pytest.raises(AuditError, match="gradients"):
        TotalVariation().prepare(without, AttackBudget(images=0, steps=1))
    with pytest.raises(AuditError, match="at least 3 images"):
        TotalVariation().prepare(Knowledge(Threat.WHITE_BOX, 16, 16, None, nn.Identity()), AttackBudget(0, 1))
    with pytest.raises(AuditError, match="no gradient"):
        TotalVariation().prepare(knowledge(Silent(), smooth(20, seed=0)), AttackBudget(images=0, steps=1))
