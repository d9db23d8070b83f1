"""The image prior, its cache, and the two attackers that steer it."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from scenes import images
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks import prior as prior_module
from sfumato.lab.attacks import search
from sfumato.lab.attacks.guided import GuidedPrior
from sfumato.lab.attacks.prior import STAGE, image_prior, images_seen, prior_file
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.search import PriorSearch
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat, UnavailableError
from sfumato.lab.audit.sampler_checks import Empty, Quarters

SIDE = 8
TRAIN, TEST = images(300, side=SIDE).images, images(16, seed=1, side=SIDE).images
ORIGINALS = TEST.float() / 255
BUDGET = AttackBudget(images=0, steps=6, prior_images=5_120)


@pytest.fixture(scope="module", autouse=True)
def tiny_and_kept(tmp_path_factory):
    """A tiny network, and a cache of its own for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(prior_module, "WIDTHS", (8, 8, 8))
        yield


def knows(module, train=TRAIN):
    return Knowledge(Threat.WHITE_BOX, SIDE, SIDE, FreshPairs(train, torch.no_grad()(module)), module)


def error(reconstructed):
    return float((reconstructed - ORIGINALS).square().mean())


MEAN_ERROR = error((TRAIN.float().mean(dim=0) / 255).expand_as(ORIGINALS))


def test_a_prior_is_trained_once_for_images_and_recipe():
    stages = []
    budget = replace(BUDGET, progress=lambda stage, *_: stages.append(stage))
    first, trained = image_prior(TRAIN, budget), len(stages)
    again = image_prior(TRAIN, replace(budget, seed=5))
    assert set(stages) <= {STAGE} and len(stages) == trained
    assert torch.equal(first.base, again.base) and first.flow.spread == again.flow.spread
    assert torch.allclose(first.base, TRAIN.float().mean(dim=0) / 255, atol=1e-5)
    changed = TRAIN.clone()
    changed[0, 0, 0, 0] += 1
    files = {
        prior_file(TRAIN, 1_280),
        prior_file(changed, 1_280),
        prior_file(TRAIN, 1_281),
        prior_file(TRAIN[1:], 1_280),
    }
    assert len(files) == 4


def test_a_damaged_prior_is_trained_again():
    image_prior(TRAIN, BUDGET)
    file = prior_file(TRAIN, BUDGET.prior_images)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    image_prior(TRAIN, BUDGET)
    assert file.read_bytes() == whole, "and to the same weights"


def test_an_interrupted_prior_goes_on_where_it_was():
    def interrupt(stage, done, total, note=""):
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    train, budget = TRAIN[:100], replace(BUDGET, prior_images=640)
    with pytest.raises(Interrupted):
        image_prior(train, replace(budget, progress=interrupt))
    steps = []
    file = prior_file(train, 640)
    assert file.with_suffix(".pt").is_file() and not file.exists()
    image_prior(train, replace(budget, progress=lambda stage, done, total, note="": steps.append(done)))
    assert min(steps) > 5 and file.is_file() and not file.with_suffix(".pt").exists()


@pytest.mark.parametrize(
    ("train", "seen", "message"), [(TRAIN[:4], 64, "at least 5 pairs"), (TRAIN, 0, "prior_images")]
)
def test_too_few_images_are_our_own_error(train, seen, message):
    with pytest.raises(AuditError, match=message):
        image_prior(train, replace(BUDGET, prior_images=seen))


def test_of_larger_images_fewer_are_seen():
    assert [images_seen(800, side, side) for side in (16, 32, 64, 224)] == [800, 800, 200, 50]
    assert images_seen(0, 32, 32) == 0


def test_guidance_reconstructs_what_the_obfuscator_keeps():
    prepared = GuidedPrior().prepare(knows(nn.Identity()), BUDGET)
    assert error(prepared.reconstruct(ORIGINALS)) < 3e-3


@pytest.mark.parametrize("attacker", [GuidedPrior(), PriorSearch()], ids=lambda one: one.name)
def test_a_constant_payload_gives_no_more_than_the_mean_image(attacker):
    found = error(attacker.prepare(knows(Empty()), BUDGET).reconstruct(0 * ORIGINALS))
    assert 0.98 * MEAN_ERROR < found < 3 * MEAN_ERROR


def test_guidance_needs_gradients():
    class Deaf(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(AuditError, match="no gradient comes through"):
        GuidedPrior().prepare(knows(Deaf()), BUDGET)
    with pytest.raises(AuditError, match="needs the obfuscator with gradients"):
        GuidedPrior().prepare(replace(knows(nn.Identity()), module=None), BUDGET)


def test_guidance_does_not_fit_the_noise():
    """Of a noisy observation, no more is fitted than what noise does not explain."""

    class Noise(nn.Module):
        noise_kind = "gaussian"

        def mean(self, x):
            return 1 * x

        def noise_std(self):
            return torch.full((3, SIDE, SIDE), 0.3)

        def forward(self, x):
            return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))

    observed = Noise()(ORIGINALS)
    found = GuidedPrior().prepare(knows(Noise()), BUDGET).reconstruct(observed)
    assert float((found - observed).square().mean()) > 0.5 * 0.3**2, "the noise itself is left unexplained"


def codes_found(budget):
    observed = Quarters()(ORIGINALS)
    found = PriorSearch().prepare(knows(Quarters()), budget).reconstruct(observed)
    return float((Quarters()(found) == observed).flatten(1).all(dim=1).double().mean())


def test_the_search_finds_an_image_with_the_observed_code_in_more_generations(monkeypatch):
    assert codes_found(replace(BUDGET, steps=8)) >= 0.9
    monkeypatch.setattr(search, "DRAWN", 4)
    few = codes_found(replace(BUDGET, steps=0))
    assert few < 0.5, "the first few draws are no search"
    monkeypatch.setattr(search, "DRAWN", 16)
    assert codes_found(replace(BUDGET, steps=8)) >= 0.9, "generations find what was not drawn"
    monkeypatch.setattr(search, "DRAWN", 400)
    assert codes_found(replace(BUDGET, steps=0)) >= 0.8, "draws are shared by all payloads"


def test_the_search_calls_the_obfuscator_and_nothing_else():
    known = replace(knows(Quarters()), module=None)
    first, again = (
        PriorSearch().prepare(known, replace(BUDGET, steps=1)).reconstruct(Quarters()(ORIGINALS[:4])) for _ in range(2)
    )
    assert torch.equal(first, again)


def test_what_is_no_code_is_not_searched():
    with pytest.raises(UnavailableError, match="no discrete code"):
        PriorSearch().prepare(knows(nn.Identity()), BUDGET)


@pytest.mark.parametrize("attacker", [GuidedPrior(), PriorSearch()], ids=lambda one: one.name)
def test_payloads_that_are_broken_or_of_another_size_are_refused(attacker):
    prepared = attacker.prepare(knows(Empty()), BUDGET)
    with pytest.raises(AuditError, match="not finite"):
        prepared.reconstruct(torch.full((2, 3, SIDE, SIDE), torch.nan))
    with pytest.raises(AuditError, match="one size only"):
        prepared.reconstruct(torch.zeros(2, 3, 4, 4))
