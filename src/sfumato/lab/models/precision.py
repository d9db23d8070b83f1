"""Half precision where it is faster: the precision on this machine, for training, audits and baselines.

3x3 convolutions of small maps become one matrix product each, for processors that multiply matrices in hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from sfumato.artifacts.provenance import cpu_name
from sfumato.errors import TrainingError

CPU = torch.device("cpu")
FEW_CHANNELS = 16
"""A convolution with fewer input channels is computed in float32: the weight gradient of the 3-channel stem falls to a
reference kernel in bfloat16 on some processors, and gains nothing on any."""
SMALL_MAP = 64
"""Output pixels up to which the product is faster than the convolution: its tiles hold rows of 16 pixels, which maps of
8x8 and less leave half empty. Measured with AMX, batch 256: a step of ResNet18 takes 2.7 instead of 3.8 s."""

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
    features = cpu_features() if device.type == "cpu" else ()
    if wanted != "auto":
        if wanted == "bf16-mixed" and device.type == "cpu" and not features:
            raise TrainingError(
                'this CPU does not compute in bfloat16, so that training.precision = "bf16-mixed" would be many times '
                'slower here; set it to "auto", which uses what the machine has'
            )
        return Precision(wanted, dense_bfloat16=False, reason="as the recipe says")
    if features:
        return Precision("32-true", dense_bfloat16=True, reason=f"CPU with {' and '.join(features)}")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16-mixed", dense_bfloat16=False, reason="GPU with bfloat16")
    reason = "this CPU has no bfloat16" if device.type == "cpu" else f"{device.type} without bfloat16"
    return Precision("32-true", dense_bfloat16=False, reason=reason)


def cpu_features() -> tuple[str, ...]:
    """Return the bfloat16 features of this processor: "AVX-512 BF16", "AMX", both, or none."""
    found = ("AVX-512 BF16", "_is_avx512_bf16_supported"), ("AMX", "_is_amx_tile_supported")
    return tuple(name for name, ask in found if bool(getattr(torch.cpu, ask, bool)()))


@contextmanager
def autocast(device: torch.device = CPU, *, enabled: bool = True) -> Iterator[None]:
    """Compute networks on a device in bfloat16 inside the block, where it is faster at it; weights stay float32.

    Convolutions of many channels gain. Depthwise ones and those of few channels lose, and stay in float32 on a CPU, as
    do batch norms' statistics anywhere. With AMX, 3x3 convolutions of small maps become products of matrices. A CPU
    without bfloat16 uses float32; nothing changes if not `enabled`. A network's output may be bfloat16: call `float()`
    on it before a loss.
    """
    on_cpu = device.type == "cpu"
    if not enabled or (on_cpu and not cpu_features()):
        yield
        return
    dispatch = on_cpu and not torch.compiler.is_compiling()
    with torch.autocast(device.type, torch.bfloat16), _Convolutions() if dispatch else nullcontext():
        yield


def compute(net: Callable[[Tensor], Tensor], inputs: Tensor, *, bfloat16: bool) -> Tensor:
    """Return a network's output (float32), computed in bfloat16 inside if `bfloat16` and where that is faster."""
    if not bfloat16:
        return net(inputs)
    with autocast(inputs.device):
        return net(inputs).float()


def fastest_device() -> torch.device:
    """Return the GPU if there is one, otherwise the processor: what attackers are trained on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


class _Convolutions(TorchFunctionMode):
    """Dispatch each 2D convolution to its fastest implementation."""

    def __init__(self) -> None:
        super().__init__()
        self._products = "AMX" in cpu_features()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
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


def is_small(images: Tensor, weight: Tensor, stride: int) -> bool:
    """Return whether `conv3x3` supports this convolution and is likely to be faster than `F.conv2d`."""
    height, width = images.shape[2:]
    fits = weight.shape[2:] == (3, 3) and weight.shape[1] == images.shape[1] and stride in (1, 2)
    return fits and _side(height, stride) * _side(width, stride) <= SMALL_MAP


def conv3x3(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv2d(images, weight, bias, stride, padding=1)`, forward and backward as products of matrices.

    All are of one precision, the stride is 1 or 2; images are best in NHWC order, as the result is.

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
