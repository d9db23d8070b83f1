"""What is simulated in training, against numpy and against ONNX Runtime's integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.lab.data import ImageSet
from sfumato.lab.export.int8 import quantize_file
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.models.device_nets import DeviceNet, DeviceShape
from sfumato.lab.models.simulated_int8 import freeze_norms, rounded_inputs, rounded_weights, simulated_int8


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0)])
def test_inputs_get_256_values_between_the_extremes_and_0(low, high):
    x = torch.rand(3, 4, 5, 5) * (high - low) + low
    values = x.numpy().astype(np.float64)
    bottom, top = min(0.0, values.min()), max(0.0, values.max())
    step = (top - bottom) / 255 or 1.0
    zero = round(-bottom / step)
    wanted = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    # A number halfway between two values may go to either.
    apart = np.abs(rounded_inputs(x).numpy() - wanted)
    assert ((apart < 1e-5) | (np.abs(apart - step) < 1e-5)).all() and (apart > 1e-5).mean() < 0.02


def test_weights_get_a_symmetric_scale_for_each_output_channel():
    weight = torch.randn(5, 4, 3, 3) * torch.tensor([1e-3, 1.0, 7.0, 0.0, 2.0]).view(5, 1, 1, 1)
    rounded = rounded_weights(weight).numpy()
    for got, given in zip(rounded, weight.numpy(), strict=True):
        largest = np.abs(given).max()
        assert np.abs(got - given).max() <= largest / 128 * 1.001, "half a step of 128 between the extremes"
        assert len(np.unique(got)) <= 129 and np.abs(got).max() == pytest.approx(largest, rel=1e-5)


def test_a_scaled_channel_is_rounded_alike():
    """So that a batch norm behind a convolution makes no difference."""
    weight, scales = torch.randn(6, 4, 3, 3), torch.tensor([0.25, 0.5, 2.0, 8.0, -4.0, 1.0]).view(6, 1, 1, 1)
    assert torch.allclose(rounded_weights(weight * scales), rounded_weights(weight) * scales, rtol=1e-6)


def test_gradients_pass_as_if_nothing_was_rounded():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    for given, rounded in ((x, rounded_inputs), (weight, rounded_weights)):
        factors = torch.randn_like(given)
        (found,) = torch.autograd.grad((rounded(given) * factors).sum(), given)
        assert torch.equal(found, factors)


def test_only_convolutions_inside_the_block_are_rounded():
    torch.manual_seed(0)
    conv, linear, x = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), torch.randn(2, 3, 5, 5)
    plain = conv(x)
    with simulated_int8():
        inside, inside_linear = conv(x), linear(x)
    wanted = nn.functional.conv2d(rounded_inputs(x), rounded_weights(conv.weight), conv.bias)
    assert torch.equal(inside, wanted) and not torch.equal(inside, plain)
    assert torch.equal(inside_linear, linear(x)) and torch.equal(conv(x), plain)
    with simulated_int8(enabled=False):
        assert torch.equal(conv(x), plain)


def test_frozen_norms_keep_their_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    freeze_norms(net)
    net(torch.randn(2, 3, 5, 5))
    assert int(net[1].num_batches_tracked) == 0
    assert net[2].training and not net[1].training


def test_it_is_what_onnx_runtimes_integers_compute(tmp_path: Path):
    """On the calibration images, so that both have the same ranges."""
    torch.manual_seed(0)
    net = DeviceNet(DeviceShape(((2, 16), (2, 32)), halved=True), 4)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    x = images.float() / 255
    net.train()
    for _ in range(20):  # the running statistics become those of these images
        net(x)
    net.eval()
    export_onnx(net, tmp_path / "net.onnx", x, input_name="image", output_name="logits")
    calibration = ImageSet(images, torch.zeros(16, dtype=torch.int64), ("any",), "noise", "noise")
    quantize_file(tmp_path / "net.onnx", tmp_path / "int8.onnx", calibration)
    integers = OnnxFunction(tmp_path / "int8.onnx")(x.numpy())
    with torch.no_grad():
        plain = net(x).numpy()
        with simulated_int8():
            simulated = net(x).numpy()
    assert np.abs(simulated - integers).max() < 0.3 * np.abs(plain - integers).max()
