"""Gradient reversal between two networks with opposite objectives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x forward, `-weight` times the gradient backward.

    Between obfuscator and deobfuscator, it lets one backward pass of `L_c + L_r` give the deobfuscator
    the gradient of `L_r` and the obfuscator the gradient of `L_c - weight * L_r`.

    Source: Ganin and Lempitsky 2015, section 3.1.

    Args:
        x: any tensor.
        weight: lambda, at least 0.
    """
    reversed_: Tensor = _ReverseGradient.apply(x, weight)  # type: ignore[no-untyped-call]
    return reversed_
