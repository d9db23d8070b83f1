"""The fused path against the plain modules, in float64, where rounding cannot hide a mistake."""

import copy

import pytest
import torch
from torch.nn import functional as F

from sfumato.nets import Obfuscator, fused, obfuscator
from sfumato.nets.fused import expand_depthwise

PICTURES = 7


@pytest.fixture
def calls(monkeypatch):
    """Fuses whatever can be fused, and notes how often it was."""
    noted = []

    def noting(x, *arguments, **options):
        noted.append(tuple(x.shape))
        return expand_depthwise(x, *arguments, **options)

    monkeypatch.setattr(obfuscator, "FUSE_ABOVE_BYTES", 0)
    monkeypatch.setattr(obfuscator, "expand_depthwise", noting)
    return noted


def fresh(seed: int = 0) -> Obfuscator:
    torch.manual_seed(seed)
    net = Obfuscator().double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return net.train()


def everything(net: Obfuscator, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers after one training pass."""
    pictures = pictures.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = net(pictures)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    (out * weights).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.requires_grad}
    return {"output": out.detach(), "gradient of pictures": pictures.grad, **gradients, **dict(net.named_buffers())}


def plain_and_fused(net: Obfuscator, pictures: torch.Tensor, calls: list, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(obfuscator, "FUSE_ABOVE_BYTES", 1 << 60)
        plain = everything(copy.deepcopy(net), pictures)
    assert not calls
    return plain, everything(copy.deepcopy(net), pictures)


def assert_same(plain: dict, other: dict) -> None:
    assert plain.keys() == other.keys()
    for name, expected in plain.items():
        scale = max(float(expected.abs().max()), 1e-3)
        assert torch.allclose(other[name], expected, rtol=0, atol=1e-9 * scale), name


def some_pictures(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(PICTURES, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# One picture's first expansion takes 192 * 16 * 16 * 8 bytes: 3 and 1 at a time leave a rest or none, and all at once.
@pytest.mark.parametrize("pictures_at_a_time", [1, 3, 100])
def test_the_fused_path_is_the_plain_one(calls, monkeypatch, pictures_at_a_time):
    monkeypatch.setattr(fused, "CACHE_BYTES", pictures_at_a_time * 192 * 16 * 16 * 8)
    plain, other = plain_and_fused(fresh(), some_pictures(), calls, monkeypatch)
    assert len(calls) == 6, "every bottleneck should have been fused"
    assert_same(plain, other)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_fused_path_takes_either_memory_order_and_oblong_pictures(calls, monkeypatch, memory_format):
    pictures = some_pictures(24, 8).contiguous(memory_format=memory_format)
    net = fresh(1).to(memory_format=memory_format)
    plain, other = plain_and_fused(net, pictures, calls, monkeypatch)
    assert_same(plain, other)


def test_a_frozen_obfuscator_still_passes_the_gradient_on(calls, monkeypatch):
    net = fresh(2).requires_grad_(False)
    plain, other = plain_and_fused(net, some_pictures(), calls, monkeypatch)
    assert float(plain["gradient of pictures"].abs().max()) > 0
    assert_same(plain, other)


def test_pictures_need_no_gradient(calls):
    net = fresh()
    net(some_pictures()).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_in_evaluation_nothing_is_fused(calls):
    fresh().eval()(some_pictures())
    assert not calls


def test_small_batches_are_not_fused_without_being_asked():
    assert not fresh().down[0]._is_worth_fusing(torch.zeros(1, 32, 32, 32))
    assert fresh().down[0]._is_worth_fusing(torch.zeros(128, 32, 32, 32))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_handwritten_gradient_passes_the_numerical_check(monkeypatch, stride):
    monkeypatch.setattr(fused, "CACHE_BYTES", 2 * 6 * 4 * 4 * 8)
    generator = torch.Generator().manual_seed(stride)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    x, weight, bias, kernel = random(3, 2, 4, 4), random(6, 2), random(6), random(6, 1, 3, 3)

    def function(x, weight, bias, kernel):
        return expand_depthwise(x, weight, bias, kernel, stride=stride, slope=0.1)

    expected = F.conv2d(
        F.leaky_relu(F.conv2d(x, weight[:, :, None, None], bias), 0.1), kernel, stride=stride, padding=1, groups=6
    )
    assert torch.allclose(function(x, weight, bias, kernel), expected, atol=1e-12)
    assert torch.autograd.gradcheck(function, (x, weight, bias, kernel))
