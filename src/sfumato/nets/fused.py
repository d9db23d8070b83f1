"""The widest part of a bottleneck, trained on a CPU without ever standing in memory.

A bottleneck's expansion is six times wider than its input, and at full resolution: written out, the
convolution, its batch norm, its activation and their gradients move that tensor through memory some
sixteen times a step, which is where a CPU's training time goes. Two facts avoid it:

* The mean and variance of a 1x1 convolution's output follow from the mean and covariance of its (six
  times narrower) input, so that batch norm folds into the convolution's weights before it is computed.
* Folded, expansion, activation and depthwise convolution treat each picture alone. A few pictures at a
  time they fit into the cache, and the backward pass computes them again instead of reading them back.

The function, its gradients and the running statistics are those of the plain modules, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CACHE_BYTES = 3 << 20
"""How much of the expansion is held at a time: about what two cores' second-level caches take."""


def folded_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Folds a batch norm in training mode into the 1x1 convolution before it, and updates its statistics.

    Args:
        x: (N, in, H, W) float32, the convolution's input, in channels-last order.
        conv: 1x1, without bias.
        norm: over the convolution's output channels; its running statistics are updated.

    Returns:
        weight (out, in) and bias (out,), differentiable in x, the convolution's weight and the norm's parameters.
    """
    rows = _rows(x)
    count = len(rows)
    mean_in = rows.mean(dim=0)
    centred = rows - mean_in
    covariance = centred.t() @ centred / count
    weight = conv.weight.flatten(1)
    mean = weight @ mean_in
    variance = ((weight @ covariance) * weight).sum(dim=1)
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return weight * scale[:, None], norm.bias - mean * scale


def expand_depthwise(x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, *, stride: int, slope: float) -> Tensor:
    """`depthwise(leaky_relu(weight x + bias))`, a few pictures at a time.

    Args:
        x: (N, in, H, W) float32 in channels-last order.
        weight: (out, in), of the 1x1 expansion.
        bias: (out,), likewise.
        kernel: (out, 1, 3, 3), of the depthwise convolution with padding 1.
        stride: of the depthwise convolution.
        slope: of the leaky ReLU.

    Returns:
        (N, out, H / stride, W / stride) float32 in channels-last order.
    """
    out: Tensor = _ExpandDepthwise.apply(x, weight, bias, kernel, stride, slope)  # type: ignore[no-untyped-call]
    return out


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels-last order -> (N * H * W, C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _ExpandDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, stride: int, slope: float) -> Tensor:
        ctx.stride, ctx.slope = stride, slope
        ctx.save_for_backward(x, weight, bias, kernel)
        parts = [
            F.conv2d(_expand(part, weight, bias, slope), kernel, None, stride, 1, groups=len(kernel))
            for part in torch.split(x, _pictures_at_a_time(x, weight))
        ]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kernel = ctx.saved_tensors
        pictures = _pictures_at_a_time(x, weight)
        grad_out = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        grad_weight, grad_bias, grad_kernel = map(torch.zeros_like, (weight, bias, kernel))
        for part, grad_part, into in zip(
            *(torch.split(whole, pictures) for whole in (x, grad_out, grad_x)), strict=True
        ):
            wide = _expand(part, weight, bias, ctx.slope)
            grad_wide, grad_kernel_part, _ = torch.ops.aten.convolution_backward(
                grad_part, wide, kernel, None, [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], len(kernel),
                [True, True, False],
            )  # fmt: skip
            grad_rows = torch.ops.aten.leaky_relu_backward(_rows(grad_wide), _rows(wide), ctx.slope, True)
            into.copy_((grad_rows @ weight).view(len(part), *x.shape[2:], -1).permute(0, 3, 1, 2))
            grad_weight.addmm_(grad_rows.t(), _rows(part))
            grad_bias.add_(grad_rows.sum(dim=0))
            grad_kernel.add_(grad_kernel_part)
        return grad_x, grad_weight, grad_bias, grad_kernel, None, None


def _expand(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    rows = F.leaky_relu_(torch.addmm(bias, _rows(x), weight.t()), slope)
    return rows.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _pictures_at_a_time(x: Tensor, weight: Tensor) -> int:
    bytes_per_picture = len(weight) * x.shape[2] * x.shape[3] * x.element_size()
    return max(1, CACHE_BYTES // bytes_per_picture)
