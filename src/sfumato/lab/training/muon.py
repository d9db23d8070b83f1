"""Muon: steps of one length in all directions for convolutions, so that a training takes a fraction of the epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.lab.models.precision import cpu_features

OTHERS = 2.0
"""Learning rate of all that is no dense convolution, as a multiple."""
_MOMENTUM, _OTHERS_MOMENTUM = 0.8, 0.9
_ITERATIONS = 5
_CUBIC, _QUINTIC = -4.7750, 2.0315
_LINEAR = 3.4445


class Muon(Optimizer):
    """Move dense convolutions along their gradients with all singular values made equal; train the rest by SGD.

    Those without a bias, which a batch norm follows: it takes any scale away, so that a step turns their weights by the
    share `lr` of their norm, which stays as it was. Everything else (depthwise and transposed convolutions, linear
    layers, norms, biases, and convolutions with a bias) is trained by SGD with Nesterov momentum 0.9, at twice that
    rate and with the weight decay.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with Nesterov momentum and
    the coefficients of its Newton-Schulz iteration; that norms are kept, Jordan 2024 (arXiv 2404.00498).

    Args:
        task: its parameters that take a gradient are trained.
        lr: in (0, 1), such as 0.06 for a batch of 256.
        weight_decay: L2 penalty on the rest.
    """

    def __init__(self, task: nn.Module, lr: float, *, weight_decay: float = 0.0) -> None:
        dense = [part for part in task.modules() if isinstance(part, nn.Conv2d) and part.groups == 1]
        convs = {part.weight for part in dense if part.bias is None}
        trained = [p for p in task.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p in convs], "lr": lr, "convolutions": True},
            {"params": [p for p in trained if p not in convs], "lr": OTHERS * lr, "convolutions": False},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; there is no closure."""
        for group in self.param_groups:
            move = _turn if group["convolutions"] else _descend
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    move(parameter, parameter.grad, state["momentum"], group)


def _turn(weight: Tensor, grad: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
    momentum.lerp_(grad, 1 - _MOMENTUM)
    ahead = grad.lerp(momentum, _MOMENTUM).permute(0, 2, 3, 1)  # no copy of weights that are channels-last
    update = orthogonal(ahead.flatten(1)).view(ahead.shape).permute(0, 3, 1, 2)
    norm = weight.norm()
    weight.sub_(update * (group["lr"] * norm / update.norm().clamp_min(1e-12)))
    weight.mul_(norm / weight.norm().clamp_min(1e-12))


def _descend(weight: Tensor, grad: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
    grad = grad.add(weight, alpha=group["weight_decay"])
    momentum.mul_(_OTHERS_MOMENTUM).add_(grad)
    weight.sub_(grad.add(momentum, alpha=_OTHERS_MOMENTUM), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix (R, C) float32 with the same singular vectors, and singular values between about 0.7 and 1.2.

    Those far below the largest one stay smaller. In bfloat16 where that is faster.
    """
    fast = matrix.is_cuda or bool(cpu_features())
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = (x / x.norm().clamp_min(1e-12)).to(torch.bfloat16 if fast else matrix.dtype)
    for _ in range(_ITERATIONS):
        products = x @ x.T
        x = torch.addmm(x, torch.addmm(products, products, products, beta=_CUBIC, alpha=_QUINTIC), x, beta=_LINEAR)
    x = x.to(matrix.dtype)
    return x.T if len(matrix) > matrix.shape[1] else x
