import pytest
import torch

from sfumato.lab.models import DECODERS, Obfuscator


@pytest.mark.parametrize("kind", DECODERS)
def test_a_network_takes_images_and_gives_images_of_the_same_size(kind):
    with torch.device("meta"):
        assert DECODERS[kind]()(torch.zeros(2, 3, 16, 24)).shape == (2, 3, 16, 24)


@pytest.mark.parametrize("kind", ["residual", "unet"])
def test_the_larger_ones_begin_at_grey_and_learn(kind):
    net, images = DECODERS[kind](), torch.rand(2, 3, 16, 16)
    out = net(images)
    assert torch.allclose(out, torch.full_like(out, 0.5))
    (out - images).square().mean().backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


def test_two_are_larger_than_the_obfuscator():
    sizes = {kind: sum(p.numel() for p in build().parameters()) for kind, build in DECODERS.items()}
    own = sum(p.numel() for p in Obfuscator().parameters())
    assert sizes["paper"] == own and min(sizes["residual"], sizes["unet"]) > 3 * own


@pytest.mark.parametrize("kind", DECODERS)
def test_each_one_has_weights_of_its_own(kind):
    one, other = DECODERS[kind](), DECODERS[kind]()
    shared = {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert not shared
