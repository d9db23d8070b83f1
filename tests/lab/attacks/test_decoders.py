import pytest
import torch

from scenes import SIDE, images
from sfumato.errors import AuditError
from sfumato.lab.attacks.decoders import PAPER, RESIDUAL, RESIDUAL_GAN, RESIDUAL_SSIM, UNET
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat
from sfumato.lab.audit.sanity_checks import fold
from sfumato.lab.models import Deobfuscator
from sfumato.lab.models.decoders import ResidualNet, UNet
from synthetic import image_set

ALL = (PAPER, RESIDUAL, UNET, RESIDUAL_SSIM, RESIDUAL_GAN)


def knowledge(payload, *, count=240, side=SIDE):
    return Knowledge(Threat.WHITE_BOX, side, side, FreshPairs(images(count, side=side).images, payload))


def flat_colours():
    return Knowledge(Threat.WHITE_BOX, SIDE, SIDE, FreshPairs(image_set(240, size=(SIDE, SIDE)).images, lambda x: x))


def error(attacker, known, payload, **budget):
    asked = images(40, seed=1).images.float() / 255
    reconstructed = attacker.prepare(known, AttackBudget(steps=0, **budget)).reconstruct(payload(asked))
    return float((reconstructed - asked).square().mean())


@pytest.mark.parametrize(
    "attacker", [pytest.param(one, marks=[pytest.mark.long] * (one is PAPER)) for one in ALL], ids=lambda a: a.name
)
def test_every_decoder_learns_and_gives_images(attacker):
    # From nothing, a few seconds are enough for the colour of a class only.
    known = knowledge(fold) if attacker.corrects else flat_colours()
    prepared = attacker.prepare(known, AttackBudget(images=640 if attacker.corrects else 3_200, steps=0))
    reconstructed = prepared.reconstruct(torch.rand(3, 3, SIDE, SIDE))
    assert reconstructed.shape == (3, 3, SIDE, SIDE) and reconstructed.dtype == torch.float32
    assert float(reconstructed.min()) >= 0 and float(reconstructed.max()) <= 1
    seen, errors = zip(*prepared.curve, strict=True)
    assert seen[0] == 0 and seen[-1] == prepared.images_seen
    assert min(errors) < errors[0]


@pytest.mark.parametrize("attacker", [RESIDUAL, pytest.param(UNET, marks=pytest.mark.long)], ids=lambda a: a.name)
def test_a_network_reconstructs_what_least_squares_cannot(attacker):
    known = knowledge(fold)
    assert error(attacker, known, fold, images=6_400) < 0.9 * error(Linear(), known, fold, images=0)


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 4, 4), (5, 32, 32), (3, 7, 9)], ids=["fewer", "more", "odd"]
)
def test_what_payload_may_have_any_shape(channels, height, width):
    def payload(x):
        return torch.nn.functional.adaptive_avg_pool2d(x, (height, width)).repeat(1, 2, 1, 1)[:, :channels]

    for attacker in (PAPER, UNET):
        prepared = attacker.prepare(knowledge(payload, count=60), AttackBudget(images=64, steps=0))
        assert prepared.reconstruct(torch.rand(2, channels, height, width)).shape == (2, 3, SIDE, SIDE)


def test_images_of_odd_sizes_are_padded_for_the_networks():
    prepared = UNET.prepare(knowledge(lambda x: x, count=60, side=13), AttackBudget(images=64, steps=0))
    assert prepared.reconstruct(torch.rand(2, 3, 13, 13)).shape == (2, 3, 13, 13)


def test_the_strong_decoders_are_at_least_four_times_the_papers():
    papers = sum(p.numel() for p in Deobfuscator().parameters())
    for net in (ResidualNet(6), UNet(6)):
        assert sum(p.numel() for p in net.parameters()) > 4 * papers


def test_two_trainings_with_one_seed_are_equal_and_with_two_are_not():
    known = knowledge(fold, count=60)
    results = [error(RESIDUAL, known, fold, images=640, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_without_pairs_there_is_nothing_to_learn_from():
    with pytest.raises(AuditError, match="needs pairs"):
        RESIDUAL.prepare(Knowledge(Threat.NO_PAIRS, SIDE, SIDE), AttackBudget(64, 0))
