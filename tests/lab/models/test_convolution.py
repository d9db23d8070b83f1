"""Convolutions as products of matrices, against torch's own in double precision."""

import pytest
import torch
from torch.nn import functional as F

from sfumato.lab.models.precision import SMALL_MAP, conv3x3, is_small

CASES = [(4, 4, 1), (8, 8, 1), (8, 8, 2), (7, 5, 2), (7, 5, 1), (1, 1, 1), (2, 2, 2)]


@pytest.mark.parametrize(("height", "width", "stride"), CASES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward_and_gradients_are_those_of_a_convolution(
    height: int, width: int, stride: int, biased: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 5, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64) if biased else None
    results = []
    for convolve in (lambda x, w, b: F.conv2d(x, w, b, stride, padding=1), lambda x, w, b: conv3x3(x, w, b, stride)):
        inputs = [t.clone().requires_grad_() for t in (images, weight, bias) if t is not None]
        out = convolve(*inputs, *([] if biased else [None]))
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)).sum().backward()
        results.append([out, *(t.grad for t in inputs)])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_frozen_weight_gets_no_gradient() -> None:
    images, weight = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(6, 4, 3, 3)
    conv3x3(images, weight, None, 1).sum().backward()
    assert images.grad is not None and weight.grad is None


def test_only_small_maps_and_3x3_kernels_are_taken() -> None:
    side = int(SMALL_MAP**0.5)
    small, large = torch.empty(1, 16, side, side), torch.empty(1, 16, side + 1, side)
    kernel = torch.empty(8, 16, 3, 3)
    assert is_small(small, kernel, 1)
    assert not is_small(large, kernel, 1)
    assert is_small(torch.empty(1, 16, 2 * side, 2 * side), kernel, 2)
    assert not is_small(small, kernel, 3)
    assert not is_small(small, torch.empty(8, 16, 1, 1), 1)
    assert not is_small(small, torch.empty(8, 8, 3, 3), 1)
