"""Rectified flows, and the posterior sampler that is one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from scenes import images
from sfumato.errors import AuditError
from sfumato.lab.attacks import posterior
from sfumato.lab.attacks.flow import STEPS, Flow, Given, check_payloads, distances, fit_flow, noises
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.posterior import PosteriorSampler
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs, Knowledge, LazyPairs, Threat

SIDE = 8
WIDTHS = 8, 8, 8
BUDGET = AttackBudget(images=640, steps=0)
TRAIN, TEST = images(600, side=SIDE).images, images(24, seed=1, side=SIDE).images
ORIGINALS = TEST.float() / 255


def half(x):
    """The left half of the image: the rest has to be made up."""
    return x[..., : SIDE // 2]


def knows(payload, train=TRAIN, *, threat=Threat.WHITE_BOX):
    pairs = FreshPairs(train, payload) if threat is Threat.WHITE_BOX else LazyPairs(train, payload)
    known = Knowledge(threat, SIDE, SIDE, pairs)
    return replace(known, estimate=Linear().prepare(known, BUDGET).reconstruct)


def error(reconstructed):
    return float((reconstructed - ORIGINALS).square().mean())


class Known(nn.Module):
    """The expected end of the ways from noise to normally distributed numbers of mean 1 and deviation 0.2."""

    def forward(self, shown):
        z, time = shown[:, :3], shown[:, 6:7]
        return 1 + 0.04 * time / (0.04 * time**2 + (1 - time) ** 2) * (z - time)


def test_euler_carries_noise_to_the_distribution():
    """The way of a Gaussian is known in closed form: `z` ends at `1 + 0.2 * z`, but for the length of the steps."""
    given = Given(torch.full((64, 3, SIDE, SIDE), 0.5), torch.zeros(64, 0, SIDE, SIDE))
    noise = noises(64, (SIDE, SIDE), 0)
    drawn = (Flow(Known(), 0.1).draw(noise, given) - 0.5) / 0.1
    assert STEPS == 10 and float(drawn.mean()) == pytest.approx(1, abs=0.01)
    assert 0.1 < float(drawn.std()) < 0.25
    assert float(torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1]) > 0.99


def test_a_flow_learns_the_distribution_and_not_its_mean():
    """Images are all black or all white: their mean is grey, which no image is."""
    grey = torch.full((3, SIDE, SIDE), 0.5)
    train = (255 * torch.randint(2, (200, 1, 1, 1), generator=torch.Generator().manual_seed(0))).byte()
    pairs = FixedPairs(train.expand(-1, 3, SIDE, SIDE), torch.zeros(200, 0, SIDE, SIDE))

    def nothing(observed):
        return Given(grey.expand(len(observed), -1, -1, -1), observed)

    flow, seen = fit_flow(pairs, nothing, replace(BUDGET, images=64 * 40), identity="", widths=WIDTHS)
    drawn = flow.draw(noises(32, (SIDE, SIDE), 0), nothing(torch.zeros(32, 0, SIDE, SIDE))).mean(dim=(1, 2, 3))
    assert seen == 64 * 40 and flow.spread == pytest.approx(0.5)
    assert float((drawn - 0.5).abs().mean()) > 0.07, "no draw is grey: noise alone would be within 0.03"
    assert 4 < int((drawn > 0.5).sum()) < 28, "both kinds are drawn"


def test_what_the_obfuscator_keeps_is_reconstructed():
    prepared = PosteriorSampler(WIDTHS).prepare(knows(lambda x: 1 - x), BUDGET)
    assert error(prepared.reconstruct(1 - ORIGINALS)) < 1e-3
    assert prepared.images_seen == 640 and prepared.curve == ()


def test_of_several_draws_the_one_is_kept_whose_payload_is_nearest(monkeypatch):
    known, sampler, every = knows(half), PosteriorSampler(WIDTHS), noises(4, (SIDE, SIDE), 0)
    fitted = []

    def once(*given, **options):
        return fitted[0] if fitted else fitted.append(fit_flow(*given, **options)) or fitted[0]

    def drawn(start):
        monkeypatch.setattr(posterior, "noises", lambda *_: start)
        return sampler.prepare(known, BUDGET).reconstruct(half(ORIGINALS))

    monkeypatch.setattr(posterior, "fit_flow", once)
    alone = torch.stack([drawn(start[None]) for start in every])
    nearest = (half(alone) - half(ORIGINALS)).square().flatten(2).mean(dim=2).argmin(dim=0)
    assert len(set(nearest.tolist())) > 1
    assert torch.equal(drawn(every), alone[nearest, torch.arange(len(ORIGINALS))])


def test_without_the_obfuscator_nothing_is_called_again():
    calls = []

    def payload(x):
        calls.append(len(x))
        return half(x)

    prepared = PosteriorSampler(WIDTHS).prepare(knows(payload, threat=Threat.PAIRS), BUDGET)
    calls.clear()
    assert prepared.reconstruct(half(ORIGINALS)).shape == ORIGINALS.shape and not calls


def test_a_constant_payload_gives_no_more_than_the_mean_image():
    prepared = PosteriorSampler(WIDTHS).prepare(knows(lambda x: 0 * x), BUDGET)
    mean = TRAIN.float().mean(dim=0) / 255
    found, least = error(prepared.reconstruct(0 * ORIGINALS)), error(mean.expand_as(ORIGINALS))
    assert 0.98 * least < found < 3 * least, "a sample, not the mean, and not nonsense"


def test_the_seed_decides_and_the_batch_does_not():
    sampler, known = PosteriorSampler(WIDTHS), knows(half)
    found = [sampler.prepare(known, replace(BUDGET, images=320, seed=seed)).reconstruct for seed in (0, 0, 1)]
    first, again, other = (reconstruct(half(ORIGINALS[:6])) for reconstruct in found)
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-4)
    assert torch.allclose(torch.cat([found[0](half(part)) for part in ORIGINALS[:6].split(3)]), first, atol=1e-5)


def test_a_decoder_is_learned_where_none_was():
    known = replace(knows(half), estimate=None)
    assert error(PosteriorSampler(WIDTHS).prepare(known, replace(BUDGET, images=64)).reconstruct(half(ORIGINALS))) < 0.2


def test_distances_compare_the_leading_channels():
    observed = torch.cat([ORIGINALS, torch.full_like(ORIGINALS, 9)], dim=1)
    assert float(distances(lambda x: x, ORIGINALS, observed).abs().max()) == 0
    apart = distances(lambda x: x, ORIGINALS + 2, observed)
    assert torch.allclose(apart, torch.full((len(TEST),), 4.0))


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"payloads \(2, 3, 4, 4\).*learned from payloads \(N, 3, 8, 8\)"),
        (torch.full((2, 3, 8, 8), torch.nan), "not finite"),
        (torch.zeros(3, 8, 8), "one size only"),
    ],
)
def test_payloads_that_cannot_be_compared_are_refused(observed, message):
    with pytest.raises(AuditError, match=message):
        check_payloads(observed, torch.zeros(5, 3, 8, 8))


def test_broken_payloads_and_too_few_pairs_are_our_own_errors():
    known = Knowledge(Threat.WHITE_BOX, SIDE, SIDE, FreshPairs(TRAIN, lambda x: x / 0), estimate=lambda x: x)
    with pytest.raises(AuditError, match="not finite"):
        PosteriorSampler(WIDTHS).prepare(known, BUDGET)
    with pytest.raises(AuditError, match="at least 5 pairs"):
        PosteriorSampler(WIDTHS).prepare(knows(half, TRAIN[:4]), BUDGET)
    fewer_than_a_batch = knows(half, TRAIN[:9])
    PosteriorSampler(WIDTHS).prepare(fewer_than_a_batch, replace(BUDGET, images=64)).reconstruct(half(ORIGINALS[:2]))
