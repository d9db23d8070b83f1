"""Images from messages alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.attacks.unpaired import Unpaired, transport

BUDGET = AttackBudget(images=64 * 20, steps=0)


def blobs(count: int, seed: int) -> Tensor:
    """(N, 3, 12, 12) uint8: mostly dark, some places bright, so that up and down differ."""
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(seed)) ** 4
    return (F.interpolate(coarse, size=12, mode="bilinear").clamp(0, 1) * 255).byte()


def inverted(images: Tensor) -> Tensor:
    return 0.3 - torch.tensor([0.5, 0.8, 0.6])[:, None, None] * images.float() / 255


def errors(messages: Tensor, test_messages: Tensor) -> tuple[float, float]:
    """Mean squared error of the attack, and of the mean public image."""
    public, truth = blobs(1000, seed=1), blobs(100, seed=2).float() / 255
    knowledge = Knowledge(Threat.NO_PAIRS, 12, 12, intercepted=messages, public=public)
    reconstructed = Unpaired().prepare(knowledge, BUDGET).reconstruct(test_messages)
    assert reconstructed.shape == truth.shape and reconstructed.min() >= 0 and reconstructed.max() <= 1
    mean = public.float().mean(dim=0) / 255
    return float((reconstructed - truth).square().mean()), float((mean - truth).square().mean())


def test_undoes_inverted_colours():
    attack, mean = errors(inverted(blobs(1000, seed=0)), inverted(blobs(100, seed=2)))
    assert attack < 0.3 * mean


def test_noise_gives_no_more_than_the_mean_image():
    source = torch.Generator().manual_seed(0)
    attack, mean = errors(torch.randn((1000, 4, 6, 6), generator=source), torch.randn((100, 4, 6, 6), generator=source))
    assert attack > mean


@pytest.mark.parametrize("sign", [1, -1])
def test_transport_matches_mean_and_covariance_and_finds_the_sign(sign):
    private, public = blobs(1000, seed=0), blobs(1000, seed=1)
    messages = 5 + 3 * sign * private.float()
    reconstructed = transport(messages, public)(messages)
    image = public.float() / 255
    assert torch.allclose(reconstructed.mean(dim=0), image.mean(dim=0), atol=1e-3)
    assert torch.allclose(reconstructed.std(dim=0), image.std(dim=0), rtol=0.1)
    correlation = torch.corrcoef(torch.stack([reconstructed.flatten(), private.flatten() / 255]))[0, 1]
    assert correlation > 0.9


def test_repeats_itself():
    messages, public = inverted(blobs(50, seed=0)), blobs(50, seed=1)
    knowledge = Knowledge(Threat.NO_PAIRS, 12, 12, intercepted=messages, public=public)
    first, second = (Unpaired().prepare(knowledge, AttackBudget(images=128, steps=0, seed=3)) for _ in range(2))
    assert torch.equal(first.reconstruct(messages), second.reconstruct(messages))


def test_says_what_is_missing():
    with pytest.raises(AuditError, match="intercepted payloads"):
        Unpaired().prepare(Knowledge(Threat.NO_PAIRS, 12, 12, public=blobs(9, seed=0)), BUDGET)
