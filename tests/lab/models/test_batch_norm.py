import copy

import pytest
import torch
from torch import nn

from norms import lived
from sfumato.lab.models import build_classifier, fold_norms
from sfumato.lab.models.batch_norm import expand_normalized
from sfumato.lab.models.obfuscator import ConvNormAct


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "vgg7", "googlenet", "convmixer"])
def test_a_folded_classifier_is_the_same_function_with_the_same_gradient(name):
    torch.manual_seed(0)
    net = lived(build_classifier(name)).double()
    folded = fold_norms(net)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    answers = [each(images) for each in (net, folded)]
    assert torch.allclose(*answers, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(answer.square().sum(), images)[0] for answer in answers]
    assert torch.allclose(*gradients, rtol=1e-7, atol=1e-9 * float(gradients[0].abs().max()))


def test_what_is_folded_is_a_frozen_copy():
    net = lived(build_classifier("resnet20")).requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    folded = fold_norms(net)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters()) and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_what_is_no_neighbour_is_left_alone():
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.BatchNorm2d(4)))
    folded = fold_norms(net)
    assert isinstance(folded[2], nn.BatchNorm2d)
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(net(images), folded(images))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(5, 4, 6, 3), (1, 4, 1, 2)])
def test_a_norm_from_its_inputs_moments_is_batch_norm(size, memory_format):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 24, 1, bias=False).double(), lived(nn.Sequential(nn.BatchNorm2d(24)))[0].double().train()
    twin, other = copy.deepcopy(conv), copy.deepcopy(norm)
    x = (torch.randn(size, dtype=torch.float64) + 1).to(memory_format=memory_format).requires_grad_()
    weights = torch.randn(size[0], 24, *size[2:], dtype=torch.float64)
    found, wanted = expand_normalized(x, conv, norm), other(twin(x))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), [x, *conv.parameters(), *norm.parameters()]),
        torch.autograd.grad((wanted * weights).sum(), [x, *twin.parameters(), *other.parameters()]),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))
    for name, value in other.state_dict().items():
        assert torch.allclose(norm.state_dict()[name].double(), value.double(), rtol=0, atol=1e-12), name


def test_a_widening_layer_trains_as_its_three_parts_do():
    torch.manual_seed(0)
    layer = ConvNormAct(4, 24, kernel=1).train()
    apart = copy.deepcopy(layer)
    x = torch.randn(3, 4, 8, 8)
    assert torch.allclose(layer(x), apart.act(apart.norm(apart.conv(x))), rtol=0, atol=1e-5)
    assert torch.allclose(layer.norm.running_var, apart.norm.running_var, atol=1e-6)
    assert torch.equal(layer.eval()(x), layer.act(layer.norm(layer.conv(x))))


def test_in_half_precision_the_norm_stays_a_layer_of_its_own():
    torch.manual_seed(0)
    layer = ConvNormAct(4, 24, kernel=1).train()
    apart = copy.deepcopy(layer)
    x = torch.randn(3, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), apart.act(apart.norm(apart.conv(x))))
