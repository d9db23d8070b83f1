"""Half precision where it is faster: what this machine computes in, chosen once for training, audits and baselines."""

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
"""What a recipe may ask for; the last two are named as in Lightning Fabric."""


@dataclass(frozen=True)
class Precision:
    """What a training computes in.

    Attributes:
        fabric: the precision of everything, as Lightning Fabric names it.
        dense_bfloat16: networks of dense convolutions (classifiers, trained or frozen, and teachers) compute in
            bfloat16 inside, and everything else in float32.
        reason: why, in words.
    """

    fabric: Literal["32-true", "bf16-mixed"]
    dense_bfloat16: bool
    reason: str

    def __str__(self) -> str:
        """In words, for people and for the provenance."""
        if self.fabric == "bf16-mixed":
            return f"bfloat16 throughout ({self.reason})"
        if self.dense_bfloat16:
            return f"bfloat16 in dense convolutions, float32 elsewhere ({self.reason})"
        return f"float32 ({self.reason})"


def choose_precision(wanted: Wanted, device: torch.device) -> Precision:
    """Decides what to compute in.

    Args:
        wanted: by the recipe.
        device: where training happens.

    Raises:
        TrainingError: bfloat16 throughout is wanted of a CPU that does not compute in it.
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
    """What this processor has for bfloat16: "AVX-512 BF16", "AMX", both, or nothing."""
    found = ("AVX-512 BF16", "_is_avx512_bf16_supported"), ("AMX", "_is_amx_tile_supported")
    return tuple(name for name, ask in found if bool(getattr(torch.cpu, ask, bool)()))


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor computes in bfloat16 itself."""
    return bool(cpu_features())


@contextmanager
def autocast(device: torch.device = CPU, *, enabled: bool = True) -> Iterator[None]:
    """Networks compute in bfloat16 inside, where the machine is faster at it; weights stay float32.

    Convolutions of many channels gain. Depthwise ones and those of few channels lose, and stay in float32 on a CPU, as
    do batch norms' statistics anywhere. With AMX, 3x3 convolutions of small maps become products of matrices
    (`sfumato.lab.models.convolution`). A CPU without bfloat16 stays with float32. What comes out of a network may be
    bfloat16: make it `float()` before it goes into a loss.

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
    """A network's output (float32) for its input, computed in bfloat16 inside where that is wanted and faster.

    Args:
        net: of dense convolutions.
        inputs: float32.
        bfloat16: see `Precision.dense_bfloat16`.
    """
    if not bfloat16:
        return net(inputs)
    with autocast(inputs.device):
        return net(inputs).float()


def device_name(device: torch.device) -> str:
    """Return the name of what computes: the GPU's, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


class _Convolutions(TorchFunctionMode):
    """Sends each 2D convolution where it is fastest, whatever network it stands in.

    Args:
        products: 3x3 ones of small maps are products of matrices.
    """

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
                return found.bfloat16()  # else a residual network would go on in float32 to its next projection
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> tuple[Any, Any]:
    """A stride, padding or dilation in both directions."""
    if isinstance(value, list | tuple):
        return (value[0], value[-1])
    return value, value
