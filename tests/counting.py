"""A second count of multiply-accumulates, from the layers' shapes alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def count_macs(net: nn.Module, height: int = 32, width: int = 32) -> int:
    """What convolutions and linear layers multiply for one RGB image, counted by hooks."""
    total = 0

    def convolution(layer: Any, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        rows, columns = layer.kernel_size
        total += output.numel() * layer.in_channels // layer.groups * rows * columns

    def linear(layer: Any, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.in_features

    hooks = [
        layer.register_forward_hook(convolution if isinstance(layer, nn.Conv2d) else linear)
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, height, width, device=next(net.parameters()).device))
    for hook in hooks:
        hook.remove()
    return total
