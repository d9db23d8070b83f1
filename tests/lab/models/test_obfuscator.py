import copy

import pytest
import torch
from torch import nn

from counting import count_macs
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, Payload, obfuscator_of
from sfumato.lab.models.fixed_ops import LEVEL, Removal
from sfumato.lab.models.obfuscator import Bottleneck, Noise, NoisyCode, ObfuscatorTrunk
from sfumato.lab.models.rebuild import ObfuscatorNetRecipe


@pytest.fixture(scope="module")
def both() -> tuple[Obfuscator, Obfuscator]:
    """One set of weights and statistics in both orders, in float64."""
    torch.manual_seed(3)
    commuted, paper = Obfuscator(order="commuted").double(), Obfuscator(order="paper").double()
    for module in commuted.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    paper.load_state_dict(commuted.state_dict())
    return commuted, paper


def run(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of an arbitrary weighted sum of it."""
    images = images.clone().requires_grad_()
    out = net(images)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    (out * weights).sum().backward()
    return out.detach(), {"images": images.grad, **{name: p.grad for name, p in net.named_parameters()}}


@pytest.mark.parametrize("training", [True, False])
def test_both_orders_are_the_same_function(both, training):
    commuted, paper = (copy.deepcopy(net).train(training) for net in both)
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out, gradients = run(commuted, images)
    out_paper, gradients_paper = run(paper, images)
    assert torch.allclose(out, out_paper, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == gradients_paper.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert torch.allclose(gradient, gradients_paper[name], rtol=0, atol=1e-9 * float(scale)), name


def test_both_orders_keep_the_same_statistics_up_to_the_size_of_the_sample(both):
    """Batch norm keeps the unbiased variance; its n / (n - 1) counts four times the pixels in the paper's order."""
    commuted, paper = (copy.deepcopy(net).train() for net in both)
    before = {name: value.clone() for name, value in commuted.named_buffers()}
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    commuted(images)
    paper(images)
    other = dict(paper.named_buffers())
    # Pixels that the norm after an upsampling bottleneck's projection sees, before and after upsampling.
    seen = {f"up.{i}.project.norm.running_var": (n, 4 * n) for i, n in enumerate((3 * 2 * 2, 3 * 4 * 4, 3 * 8 * 8))}
    assert seen.keys() <= before.keys()
    for name, value in commuted.named_buffers():
        expected = other[name]
        if name in seen:
            few, many = seen[name]
            batch_variance = (expected - 0.9 * before[name]) / 0.1 * (many - 1) / many
            expected = 0.9 * before[name] + 0.1 * batch_variance * few / (few - 1)
        assert not torch.equal(value, before[name]), name
        assert torch.allclose(value, expected, rtol=1e-9, atol=1e-9), name


def test_both_orders_have_the_same_names(both):
    commuted, paper = both
    assert commuted.state_dict().keys() == paper.state_dict().keys()


@pytest.mark.parametrize("order", ["commuted", "paper"])
@pytest.mark.parametrize("network", [Obfuscator, Deobfuscator])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 24), (8, 64)])
def test_any_size_that_is_a_multiple_of_8_keeps_its_size(order, network, height, width):
    with torch.device("meta"):
        assert network(order=order)(torch.zeros(2, 3, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 3, 32, 36), (1, 3, 32, 4), (1, 1, 32, 32), (3, 32, 32)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        Obfuscator()(torch.zeros(shape))


def test_the_layers_are_those_of_the_papers_table():
    net = Obfuscator()
    bottlenecks = [m for m in net.modules() if isinstance(m, Bottleneck)]
    shape = [(b.expand.conv.in_channels, b.project.conv.out_channels, b.depthwise.conv.stride[0]) for b in bottlenecks]
    assert shape == [(32, 32, 2), (32, 64, 2), (64, 128, 2), (128, 64, 1), (64, 32, 1), (32, 3, 1)]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is None for c in convolutions)
    activations = [m for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(activations) == len(norms) == 1 + 3 * 6


def test_a_bottleneck_does_not_stride_and_upsample_at_once():
    with pytest.raises(ValueError, match="either"):
        Bottleneck(8, 8, stride=2, upsample=2)


SOME = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_noise_has_the_size_that_is_stated_and_is_sampled_in_evaluation_too():
    noise = Noise(3).eval()
    with torch.no_grad():
        noise.log_std.copy_(torch.tensor([0.1, 1.0, 2.0]).log().view(3, 1, 1))
    torch.manual_seed(0)
    sampled = noise(torch.full((500, 3, 8, 8), 5.0)) - 5
    assert torch.allclose(sampled.std(dim=(0, 2, 3)), torch.tensor([0.1, 1.0, 2.0]), rtol=0.02)
    assert torch.allclose(sampled.mean(dim=(0, 2, 3)), torch.zeros(3), atol=0.05)


def test_what_comes_out_depends_on_the_image_through_the_noisy_code_alone():
    net = Obfuscator(noisy=True).eval()
    code = net.encode(SOME)
    assert code.shape == (4, 128, 2, 3)
    torch.manual_seed(0)
    out = net(SOME)
    torch.manual_seed(0)
    assert torch.equal(out, net.up(net.noise(code)))
    assert not torch.equal(out, net(SOME))


def test_the_stated_noise_is_that_of_the_code():
    net = Obfuscator(noisy=True).eval()
    code = NoisyCode(net, 16, 24)
    assert torch.equal(code.mean(SOME), net.encode(SOME))
    assert code.noise_std().shape == (128, 2, 3)
    assert torch.allclose(code.noise_std(), torch.full((128, 2, 3), Noise.first_std))
    with pytest.raises(ValueError, match="no noise"):
        NoisyCode(Obfuscator(), 16, 24)


def test_eight_bits_come_out_and_a_fresh_network_begins_in_their_range():
    net = Obfuscator(eight_bit=True)
    out = net(SOME)
    levels = out / LEVEL
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(((out > 0) & (out < 1)).float().mean()) > 0.9


def test_what_is_removed_does_not_change_what_comes_out():
    # In training mode, as fresh running statistics would flatten what comes out.
    net = Obfuscator(removal=Removal(colour=True, frequencies=1)).train()
    tinted = SOME + torch.tensor([0.3, 0.0, -0.3]).view(3, 1, 1)
    grey = SOME.mean(dim=1, keepdim=True).expand_as(SOME)
    assert torch.allclose(net(tinted), net(SOME), atol=1e-4)
    assert not torch.allclose(net(grey), net(SOME), atol=1e-4)


def test_a_recipe_that_says_nothing_describes_the_papers_network():
    net = obfuscator_of(ObfuscatorNetRecipe())
    assert net.state_dict().keys() == Obfuscator().state_dict().keys()
    assert (net.removal, net.noise, net.eight_bit) == (None, None, False)


def test_a_recipe_describes_the_network():
    net = obfuscator_of(
        ObfuscatorNetRecipe.model_validate(
            {
                "input": {"remove_colour": True, "remove_frequencies": 2},
                "bottleneck": {"rate_weight": 0.0, "entropy_weight": 0.1},
                "output": {"format": "8-bit"},
            }
        )
    )
    assert (net.removal.colour, net.removal.frequencies, net.eight_bit) == (True, 2, True)
    assert net.noise is not None


def test_the_payload_is_normalised_after_rounding():
    net, normalize = Obfuscator(eight_bit=True).eval(), Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.5))
    payload = Payload(net, normalize, 16, 24)
    assert torch.equal(payload(SOME), normalize(net(SOME)))
    assert payload.step == pytest.approx(1 / 255 / 0.2)
    assert not hasattr(payload, "noisy_code") and not hasattr(payload, "code_bits")
    assert isinstance(Payload(Obfuscator(noisy=True), normalize, 16, 24).noisy_code, NoisyCode)


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("order", ["paper", "commuted"])
def test_the_payload_is_the_obfuscated_image_normalised_for_less(both, order, eight_bit):
    net = Obfuscator(order=order, eight_bit=eight_bit).double().eval()
    net.load_state_dict(both[0].state_dict())
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).double()
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    payload = Payload(net, normalize, 16, 24)
    assert torch.allclose(payload(images), normalize(net(images)), rtol=1e-9, atol=1e-9)
    assert count_macs(payload.float()) == 18_929_664 < count_macs(net.float()) - 2_000_000


def test_noise_payload(both):
    net = Obfuscator(noisy=True).eval()
    net.load_state_dict(both[0].state_dict(), strict=False)  # all but the noise's size
    payload = Payload(net, Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), 16, 24)
    torch.manual_seed(0)
    out = payload(SOME)
    torch.manual_seed(0)
    assert torch.allclose(out, payload.normalize(net(SOME)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out, payload(SOME), atol=1e-3)


def test_an_obfuscator_that_begins_as_a_trunk_computes_its_features():
    torch.manual_seed(4)
    trunk, whole = ObfuscatorTrunk(10).double().eval(), Obfuscator().double().eval()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    last = copy.deepcopy(whole.up[-1].state_dict())
    mean, std = torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor([0.2, 0.25, 0.3]).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    whole.begin_as(trunk, torch.zeros(3).double(), std)
    of_scaled = trunk.features(images / std.view(1, 3, 1, 1))
    assert torch.allclose(whole.up[:-1](whole.encode(images)), of_scaled, atol=1e-9)
    whole.begin_as(trunk, mean, std)
    stem = trunk.stem((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert torch.allclose(whole.stem(images)[:, :, 1:-1, 1:-1], stem[:, :, 1:-1, 1:-1], atol=1e-9)
    assert not torch.allclose(whole.stem(images), stem, atol=1e-3)  # next to the padding
    assert all(torch.equal(value, last[name]) for name, value in whole.up[-1].state_dict().items())


def test_a_trunk_is_the_obfuscator_but_for_its_last_bottleneck():
    head = 32 * 10 + 10
    assert sum(p.numel() for p in ObfuscatorTrunk(10).parameters()) - head == sum(
        p.numel() for name, p in Obfuscator().named_parameters() if not name.startswith("up.2.")
    )
    assert ObfuscatorTrunk(7)(torch.rand(2, 3, 24, 40)).shape == (2, 7)
