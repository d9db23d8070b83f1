"""The cost of a network: parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.lab.models.device_nets import fold_branches


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass for one image, as deployed: branches that fold away do not count.

    Attributes:
        params: trainable numbers.
        macs: multiply-accumulates of convolutions and linear layers; the paper's FLOPS.
    """

    params: int
    macs: int


def cost(net: nn.Module, *, height: int = 32, width: int = 32) -> Cost:
    """Count parameters and multiply-accumulates of a net for one image (1, 3, height, width) float32."""
    net = fold_branches(net)
    params = sum(p.numel() for p in net.parameters())
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, height, width, device=device))
    finally:
        net.train(was_training)
    return Cost(params=params, macs=counter.get_total_flops() // 2)
