"""Networks for the device: what they cost, counted by hand, and that their branches fold away."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from norms import lived
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.models import CLASSIFIERS, Obfuscator, Sketcher, build_classifier, cost, fold_norms
from sfumato.lab.models.device_nets import DEVICE_NETS, BranchedConv, DeviceNet, DeviceShape, fold_branches

SMALL = DeviceShape(((2, 16), (2, 24)))
# Of every convolution: channels in and out, and the side of the map that comes out, for an image of 32x32.
BY_HAND = {
    "device-nano": [(3, 16, 16), (16, 16, 16), (16, 32, 8), (32, 32, 8), (32, 64, 4), (64, 64, 4)],
    "device-paper": [
        *[(3, 32, 32), (32, 32, 16), (32, 32, 16), (32, 32, 16), (32, 32, 16)],
        *[(32, 64, 8), (64, 64, 8), (64, 64, 8), (64, 64, 8), (64, 88, 4), (88, 88, 4)],
    ],
    "device-large": [
        *[(3, 32, 32), (32, 64, 16), (64, 64, 16), (64, 64, 16), (64, 64, 16)],
        *[(64, 96, 8), (96, 96, 8), (96, 96, 8), (96, 96, 8), (96, 144, 4), (144, 144, 4)],
    ],
}


def summed(conv: BranchedConv, x: torch.Tensor, stride: int) -> torch.Tensor:
    """The sum of the branches, each by itself, with torch's functions."""
    total = torch.zeros(())
    for branch in conv.branches:
        norm, y = branch.norm, x
        if branch.conv is not None:
            weight = branch.conv.weight
            y = F.conv2d(x, weight, stride=stride, padding={3: 1, 1: 0}[weight.shape[2]])
        total = total + F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return total


@pytest.mark.parametrize(("name", "layers"), BY_HAND.items())
def test_the_cost_is_that_of_its_convolutions_counted_by_hand(name, layers):
    with torch.device("meta"):
        found = cost(build_classifier(name, classes=7))
    last = layers[-1][1]
    assert found.macs == sum(9 * given * made * side**2 for given, made, side in layers) + 7 * last
    assert found.params == sum(9 * given * made + made for given, made, _ in layers) + 7 * last + 7


def test_no_1x1_convolution_strides(monkeypatch):
    """With few channels, oneDNN writes past its memory there (images of 64 pixels crashed)."""
    kinds, plain = set(), F.conv2d

    def recording(x, weight, bias=None, stride=1, *rest, **named):
        kinds.add((weight.shape[-1], stride if isinstance(stride, int) else stride[0]))
        return plain(x, weight, bias, stride, *rest, **named)

    monkeypatch.setattr(F, "conv2d", recording)
    DeviceNet(DEVICE_NETS["device-nano"], 4)(torch.rand(2, 3, 64, 64))
    assert (3, 2) in kinds and {stride for kernel, stride in kinds if kernel == 1} == {1}


def test_each_fits_its_budget_and_uses_it():
    with torch.device("meta"):
        nano, paper, large = (cost(build_classifier(f"device-{name}")) for name in ("nano", "paper", "large"))
        sketch, papers = cost(Sketcher(trunk="device-paper", bits=8)), cost(Obfuscator(order="paper"))
        largest = cost(Sketcher(trunk="device-large", bits=8))
    assert nano.params <= 100_000 and 0.95 * 2.5e6 < nano.macs <= 2.5e6
    assert paper.params < sketch.params <= papers.params == 324_518
    assert 0.95 * 21.7e6 < sketch.macs <= 21.7e6
    assert large.macs < largest.macs <= 60e6 < largest.macs / 0.95


@pytest.mark.parametrize("name", DEVICE_NETS)
@pytest.mark.parametrize("side", [48, 49, 64, 96, 128, 224, 320])
def test_a_budget_holds_for_larger_images_too(name, side):
    with torch.device("meta"):
        net = build_classifier(name)
        assert cost(net, height=side, width=side).macs <= 2.6 * cost(net).macs


@pytest.mark.parametrize(("side", "halvings"), [(48, 0), (49, 1), (96, 1), (97, 2), (200, 3)])
def test_larger_images_are_reduced_by_a_stride_a_pooling_and_a_shrunk_image(side, halvings):
    torch.manual_seed(0)
    net = lived(DeviceNet(SMALL, 3)).double()
    images = x = torch.rand(1, 3, side, 20, dtype=torch.float64)
    if halvings > 2:
        x = x.reshape(1, 3, side // 2, 2, 10, 2).mean(dim=(3, 5))
    x = F.relu(summed(net.stem, x, 2 if halvings else 1))
    if halvings > 1:
        x = nn.MaxPool2d(3, 2, 1)(x)
    wanted = net.head(net.layers(x).mean(dim=(2, 3)))
    assert torch.allclose(net(images), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("given", "made", "stride", "kinds"), [(8, 8, 1, 3), (8, 12, 1, 2), (8, 8, 2, 2)])
@pytest.mark.parametrize("reduction", [1, 2])
def test_branches_fold_into_one_convolution(given, made, stride, kinds, reduction):
    torch.manual_seed(0)
    conv = lived(BranchedConv(given, made, stride))
    reduction = 1 if kinds == 3 else reduction  # what does not keep the size has no identity
    assert len(conv.branches) == kinds
    x = torch.randn(2, given, 9, 12)
    wanted = summed(conv, x, stride * reduction)
    folded = fold_branches(nn.Sequential(conv))[0]
    tolerance = 1e-5 * float(wanted.detach().abs().max())
    assert torch.allclose(conv(x, reduction), wanted, rtol=0, atol=tolerance)
    assert torch.allclose(folded(x, reduction), wanted, rtol=0, atol=tolerance)
    assert {name: tuple(value.shape) for name, value in folded.named_parameters()} == {
        "weight": (made, given, 3, 3),
        "bias": (made,),
    }


def test_in_training_each_branch_is_normalised_by_its_own_batch():
    torch.manual_seed(0)
    conv = BranchedConv(8, 8).double().train()
    x = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    wanted = torch.zeros(())
    for branch in conv.branches:
        y = (
            x
            if branch.conv is None
            else branch.conv.double()(x if branch.conv.kernel_size == (1, 1) else F.pad(x, [1] * 4))
        )
        mean, variance = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        wanted = wanted + (y - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(conv(x), wanted, atol=1e-10)


@pytest.mark.parametrize("shape", [*DEVICE_NETS.values(), DeviceShape(((2, 8), (1, 8)), squeeze=True, halved=True)])
def test_a_folded_network_computes_the_same_and_has_no_norm_left(shape):
    torch.manual_seed(0)
    net = lived(DeviceNet(shape, 5))
    before = copy.deepcopy(net.state_dict())
    images = torch.rand(2, 3, 32, 32)
    for fold in (fold_branches, fold_norms):
        folded = fold(net)
        wanted = net(images)
        assert float((folded(images) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        assert not any(isinstance(part, nn.BatchNorm2d | BranchedConv) for part in folded.modules())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_without_branches_there_is_one_norm_for_each_convolution():
    net = DeviceNet(DeviceShape(((2, 8), (1, 8)), branches=False), 5)
    kinds = Counter(type(part) for part in net.modules())
    assert kinds[nn.Conv2d] == kinds[nn.BatchNorm2d] == 3
    branched = Counter(type(part) for part in DeviceNet(DeviceShape(((2, 8), (1, 8))), 5).modules())
    assert branched[nn.Conv2d] == 6 and branched[nn.BatchNorm2d] == 7, "one of the three has an identity"


def test_gradients_pass_through_the_folding_as_through_the_branches():
    torch.manual_seed(0)
    net = lived(DeviceNet(SMALL, 3)).double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    got = torch.autograd.grad(net(images).square().sum(), list(net.parameters()))
    apart = copy.deepcopy(net)
    for part in apart.modules():
        if isinstance(part, BranchedConv):
            part.forward = lambda x, reduction=1, part=part: summed(part, x, part.stride * reduction)
    wanted = torch.autograd.grad(apart(images).square().sum(), list(apart.parameters()))
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_a_network_without_branches_is_not_copied():
    net = build_classifier("resnet20")
    assert fold_branches(net) is net


def test_squeeze_excitation_scales_channels_by_their_means():
    torch.manual_seed(0)
    net = DeviceNet(DeviceShape(((1, 4), (1, 8)), squeeze=True), 2)
    assert [type(part).__name__ for part in net.layers] == ["BranchedConv", "ReLU", "SqueezeExcitation"]
    squeeze = net.layers[-1]
    x = torch.randn(2, 8, 3, 3)
    first, second = squeeze.weights[0], squeeze.weights[2]
    hidden = (x.mean(dim=(2, 3)) @ first.weight.T + first.bias).clamp_min(0)
    scale = ((hidden @ second.weight.T + second.bias) / 6 + 0.5).clamp(0, 1)
    assert torch.allclose(squeeze(x), x * scale[:, :, None, None], atol=1e-6)


def test_the_device_gets_one_convolution_for_each_and_no_norm(tmp_path: Path):
    torch.manual_seed(0)
    net = lived(DeviceNet(SMALL, 3))
    export_onnx(net, tmp_path / "net.onnx", torch.rand(3, 3, 32, 32), input_name="image", output_name="logits")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    assert kinds["Conv"] == kinds["Relu"] == 4
    assert not {"BatchNormalization", "Add", "Pad", "Mul"} & set(kinds)
    weights = [onnx.numpy_helper.to_array(value) for value in onnx.load(tmp_path / "net.onnx").graph.initializer]
    assert sorted(np.prod(value.shape) for value in weights if value.ndim == 4) == [432, 2304, 3456, 5184]


def test_every_size_is_a_classifier_and_a_trunk():
    assert {f"device-{name}" for name in ("nano", "paper", "large")} == DEVICE_NETS.keys() <= CLASSIFIERS.keys()
    torch.manual_seed(0)
    for name in DEVICE_NETS:
        sketcher = Sketcher(40, 32, classes=3, bits=4, trunk=name).eval()
        sketcher.trunk.load_state_dict(build_classifier(name, 3).state_dict())
        decoded, logits = sketcher(torch.rand(2, 3, 40, 32))
        assert decoded.shape == (2, 3, 40, 32) and logits.shape == (2, 3)
