"""3x3 convolutions of small maps as one matrix product each, for processors that multiply matrices in hardware."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

SMALL_MAP = 64
"""Output pixels up to which the product is faster than the convolution: its tiles hold rows of 16 pixels, which maps of
8x8 and less leave half empty. Measured with AMX, batch 256: a step of ResNet18 takes 2.7 instead of 3.8 s."""


def is_small(images: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether `conv3x3` supports this convolution and is likely to be faster than `F.conv2d`."""
    height, width = images.shape[2:]
    fits = weight.shape[2:] == (3, 3) and weight.shape[1] == images.shape[1] and stride in (1, 2)
    return fits and _side(height, stride) * _side(width, stride) <= SMALL_MAP


def conv3x3(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv2d(images, weight, bias, stride, padding=1)`, forward and backward as products of matrices.

    Args:
        images: (N, C, H, W) float of any precision, best in NHWC order.
        weight: (K, C, 3, 3) of the same precision.
        bias: (K,) of the same precision, or None.
        stride: 1 or 2.

    Returns:
        (N, K, H / stride, W / stride) of the same precision, in NHWC order.

    Source: Chellapilla, Puri and Simard 2006 (convolution as a product with unrolled windows).
    """
    out: Tensor = _Conv3x3.apply(images, weight, stride)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias.view(1, -1, 1, 1)


class _Conv3x3(torch.autograd.Function):
    """The windows are unrolled again in the backward pass: kept, they would take nine times the maps' memory."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return _product(images, weight, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        (grad,) = grads
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            # At stride 1 it is a convolution itself, with the weights turned round.
            if ctx.stride == 1:
                of_images = _product(grad, weight.flip(2, 3).transpose(0, 1), 1)
            else:
                of_images = conv2d_input(images.shape, weight, grad, ctx.stride, padding=1)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            pixels = grad.permute(0, 2, 3, 1).flatten(0, 2)
            found = pixels.T @ _windows(images, ctx.stride)
            of_weight = found.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        return of_images, of_weight, None


def _product(images: Tensor, weight: Tensor, stride: int) -> Tensor:
    height, width = (_side(side, stride) for side in images.shape[2:])
    rows = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9 C, K)
    found = _windows(images, stride) @ rows
    return found.view(len(images), height, width, -1).permute(0, 3, 1, 2)


def _windows(images: Tensor, stride: int) -> Tensor:
    """(N, C, H, W) -> (N * out height * out width, 9 C): rows, columns, then channels of each 3x3 window."""
    count, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    over_images, over_rows, over_columns, _ = padded.stride()
    size = count, _side(height, stride), _side(width, stride), 3, 3 * channels
    strides = over_images, over_rows * stride, over_columns * stride, over_rows, 1
    return padded.as_strided(size, strides).reshape(-1, 9 * channels)


def _side(side: int, stride: int) -> int:
    """The output's side, with a padding of 1."""
    return (side - 1) // stride + 1
