"""Convolutions as 8-bit integers would compute them, for the last epochs of a training.

The rounding is that of `sfumato.lab.export.int8`: unsigned 8 bits for what goes into a convolution, signed 7 bits and a
scale of its own for each output channel's weights. A batch norm that follows scales whole channels, which changes
nothing in the second.

Source: Jacob et al. 2018, section 3.1 (training with simulated quantisation). Ours is the range of the inputs: that of
the batch, in place of a moving average of ranges, so that there is no further state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_INPUTS, _WEIGHTS = (0, 255), (-64, 64)
"""The smallest and the largest integer."""
_SMALLEST = 1e-12


@contextmanager
def simulated_int8(*, enabled: bool = True) -> Iterator[None]:
    """Round inputs and weights of each 2D convolution inside the block; gradients pass as if nothing was rounded."""
    if not enabled:
        yield
        return
    with _Rounding():
        yield


def freeze_norms(net: nn.Module) -> None:
    """Put a network's batch norms into evaluation mode, so that what is rounded is what the device computes."""
    for part in net.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def rounded_inputs(x: Tensor) -> Tensor:
    """Round a tensor of any shape to 256 values from its smallest number, or 0, to its largest, or 0."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = ((high - low) / (_INPUTS[1] - _INPUTS[0])).clamp_min(_SMALLEST).float()
    return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().to(torch.int32), *_INPUTS)


def rounded_weights(weight: Tensor) -> Tensor:
    """Round the weights of each output channel (out, ...) to 129 values, symmetric about 0."""
    largest = weight.detach().flatten(1).abs().amax(dim=1)
    scale = (2 * largest / (_WEIGHTS[1] - _WEIGHTS[0])).clamp_min(_SMALLEST).float()
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, *_WEIGHTS)


class _Rounding(TorchFunctionMode):
    """Round what goes into each 2D convolution."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.conv2d:
            return func(*args, **kwargs or {})
        return self._conv2d(*args, **kwargs or {})

    def _conv2d(self, input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:  # noqa: A002
        return F.conv2d(rounded_inputs(input), rounded_weights(weight), *rest, **options)
