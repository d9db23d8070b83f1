"""Batch norms without a pass of their own: folded into a frozen convolution, or computed from what goes into it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfumato.lab.models.device_nets import fold_branches

Net = TypeVar("Net", bound=nn.Module)


def fold_norms(net: Net) -> Net:
    """Fold batch norms that directly follow a convolution, and branches, into it, in a copy of a frozen network.

    In evaluation mode such a norm is an affine map of each channel, so the function is the same up to rounding, and
    forward and backward pass skip the norm. Only neighbours in an `nn.Sequential` are folded, where it is certain that
    nothing is between them. The copy is in evaluation mode and takes no gradient.

    Source: Jacob et al. 2018, section 3.2 (batch normalization folding); PyTorch's own function does it.
    """
    folded = fold_branches(net)
    folded = (copy.deepcopy(net) if folded is net else folded).eval()
    for row in folded.modules():
        if type(row) is not nn.Sequential:
            continue
        for place in range(len(row) - 1):
            conv, norm = row[place], row[place + 1]
            # exactly these: a subclass may compute something else
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                row[place], row[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return folded.requires_grad_(False)


class _Products(torch.autograd.Function):
    """`x.T @ x` of (M, C); as it is symmetric, its gradient takes one product over all rows instead of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.T @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = x @ (grads[0] + grads[0].T)
        return passed


def expand_normalized(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))` in training mode for a 1x1 convolution, without a pass over its many output channels.

    Each output is a linear map of the input's channels at one place, so that its mean and variance follow from the
    input's mean and covariance, over fewer channels, and the norm becomes a part of the weights. Function, gradients
    and running statistics are those of the two layers, up to rounding.

    Source: the moments of a linear map, Papoulis 1991, section 7-1; its use for batch norm is ours.

    Args:
        x: (N, C, H, W) float.
        conv: 1x1, stride 1, one group, no bias, C to K channels.
        norm: over K channels, with running statistics and a momentum; they are updated.

    Returns:
        (N, K, H, W) float.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    count = len(pixels)
    mean = pixels.mean(dim=0)
    products: Tensor = _Products.apply(pixels)  # type: ignore[no-untyped-call]
    covariance = products / count - torch.outer(mean, mean)
    weight = conv.weight.flatten(1)
    out_mean = weight @ mean
    out_variance = ((weight @ covariance) * weight).sum(dim=1).clamp_min(0)
    scale = norm.weight * torch.rsqrt(out_variance + norm.eps)
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(out_mean, norm.momentum)
        norm.running_var.lerp_(out_variance * (count / max(1, count - 1)), norm.momentum)
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), norm.bias - out_mean * scale)
