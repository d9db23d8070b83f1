"""Half precision where it is faster: the precision on this machine, for training, audits and baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sfumato.artifacts.provenance import cpu_name
from sfumato.errors import TrainingError
from sfumato.lab.models.convolution import conv3x3, is_small

CPU = torch.device("cpu")
FEW_CHANNELS = 16
"""A convolution with fewer input channels is computed in float32: the weight gradient of the 3-channel stem falls to a
reference kernel in bfloat16 on some processors, and gains nothing on any."""

Wanted = Literal["auto", "32-true", "bf16-mixed"]
"""Values of a recipe; the last two are named as in Lightning Fabric."""


@dataclass(frozen=True)
class Precision:
    """The precision of a training.

    Attributes:
        fabric: the precision of everything, as Lightning Fabric names it.
        dense_bfloat16: networks of dense convolutions (classifiers, trained or frozen, and teachers) compute in
            bfloat16 inside, and everything else in float32.
        reason: why, for people.
    """

    fabric: Literal["32-true", "bf16-mixed"]
    dense_bfloat16: bool
    reason: str

    def __str__(self) -> str:
        """Return it in words, for people and for the provenance."""
        if self.fabric == "bf16-mixed":
            return f"bfloat16 throughout ({self.reason})"
        if self.dense_bfloat16:
            return f"bfloat16 in dense convolutions, float32 elsewhere ({self.reason})"
        return f"float32 ({self.reason})"


def choose_precision(wanted: Wanted, device: torch.device) -> Precision:
    """Choose the precision of a training on a device, as a recipe wants it.

    Raises:
        TrainingError: bfloat16 throughout on a CPU without it.
    """
    if wanted == "32-true":
        return Precision("32-true", dense_bfloat16=False, reason="as the recipe says")
    if device.type == "cpu":
        if wanted == "bf16-mixed":
            if not cpu_has_bfloat16():
                raise TrainingError(
                    'this CPU does not compute in bfloat16, so that training.precision = "bf16-mixed" would be many '
                    'times slower here; set it to "auto", which uses what the machine has'
                )
            return Precision("bf16-mixed", dense_bfloat16=False, reason="as the recipe says")
        features = cpu_features()
        if not features:
            return Precision("32-true", dense_bfloat16=False, reason="this CPU has no bfloat16")
        return Precision("32-true", dense_bfloat16=True, reason=f"CPU with {' and '.join(features)}")
    if wanted == "bf16-mixed":
        return Precision("bf16-mixed", dense_bfloat16=False, reason="as the recipe says")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16-mixed", dense_bfloat16=False, reason="GPU with bfloat16")
    return Precision("32-true", dense_bfloat16=False, reason=f"{device.type} without bfloat16")


def cpu_features() -> tuple[str, ...]:
    """Return the bfloat16 features of this processor: "AVX-512 BF16", "AMX", both, or none."""
    found = ("AVX-512 BF16", "_is_avx512_bf16_supported"), ("AMX", "_is_amx_tile_supported")
    return tuple(name for name, ask in found if bool(getattr(torch.cpu, ask, bool)()))


def cpu_has_bfloat16() -> bool:
    """Return whether this machine's processor computes in bfloat16."""
    return bool(cpu_features())


@contextmanager
def autocast(device: torch.device = CPU, *, enabled: bool = True) -> Iterator[None]:
    """Compute networks in bfloat16 inside the block, where the machine is faster at it; weights stay float32.

    Convolutions of many channels gain. Depthwise ones and those of few channels lose, and stay in float32 on a CPU, as
    do batch norms' statistics anywhere. With AMX, 3x3 convolutions of small maps become products of matrices
    (`sfumato.lab.models.convolution`). A CPU without bfloat16 uses float32. A network's output may be bfloat16:
    call `float()` on it before a loss.

    Args:
        device: where the networks are.
        enabled: False leaves everything as it is.
    """
    on_cpu = device.type == "cpu"
    if not enabled or (on_cpu and not cpu_has_bfloat16()):
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        if on_cpu and not torch.compiler.is_compiling():
            with _Convolutions(products="AMX" in cpu_features()):
                yield
        else:
            yield


def compute(net: Callable[[Tensor], Tensor], inputs: Tensor, *, bfloat16: bool) -> Tensor:
    """Return a network's output (float32), computed in bfloat16 inside if `bfloat16` and where that is faster."""
    if not bfloat16:
        return net(inputs)
    with autocast(inputs.device):
        return net(inputs).float()


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


class _Convolutions(TorchFunctionMode):
    """Dispatch each 2D convolution to its fastest implementation; `products`: 3x3 ones of small maps too."""

    def __init__(self, *, products: bool) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        convolves = func is F.conv2d or func is torch.ops.aten.conv2d.default
        if convolves and torch.is_autocast_enabled("cpu"):  # a part of a network may have switched it off
            return self._conv2d(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _conv2d(
        self,
        input: Tensor,  # noqa: A002 - as torch names it
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        few = weight.shape[1] < FEW_CHANNELS  # of each group: depthwise convolutions have one
        alike = _pair(dilation) == (1, 1) and _pair(padding) == (1, 1) and len(set(_pair(stride))) == 1
        product = self._products and not few and groups == 1 and alike
        if product and is_small(input, weight, _pair(stride)[0]):
            with torch.autocast("cpu", enabled=False):
                half = None if bias is None else bias.bfloat16()
                return conv3x3(input.bfloat16(), weight.bfloat16(), half, _pair(stride)[0])
        if few:
            with torch.autocast("cpu", enabled=False):
                single = None if bias is None else bias.float()
                found = F.conv2d(input.float(), weight.float(), single, stride, padding, dilation, groups)
                return found.bfloat16()  # else a residual network would continue in float32 to its next projection
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> tuple[Any, Any]:
    """Return a stride, padding or dilation in both directions."""
    if isinstance(value, list | tuple):
        return (value[0], value[-1])
    return value, value
