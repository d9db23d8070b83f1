"""The paper's obfuscator and deobfuscator.

Source: Leroux et al. 2018, appendix A and table 4, in the reading that reproduces its counts: 324,518
parameters, and 26,449,920 multiply-accumulates for a 3x32x32 picture in its order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Order = Literal["commuted", "paper"]

EXPANSION = 6
"""How many times wider than its input a bottleneck is inside (paper, appendix A)."""


class ConvNormAct(nn.Module):
    """A convolution without bias, batch norm and leaky ReLU, "for all layers".

    Source: paper, appendix A.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel; the padding keeps the size.
        stride: of the convolution.
        groups: of the convolution; as many as channels make it depthwise.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise and 1x1 projection.

    There is no skip connection, and the last activation is kept, as in the paper (not as in MobileNetV2).

    Source: paper, appendix A ("Bottleneck module").

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the depthwise convolution; only without upsampling.
        upsample: factor of the nearest-neighbour upsampling, 1 for none.
        order: where the upsampling stands. "paper" puts it before the projection, as the paper counts
            its operations. "commuted" puts it after everything: a 1x1 convolution, a batch norm and a
            leaky ReLU act on each pixel alone, so the function is the same (in training mode too, as
            repeating every pixel equally often changes neither mean nor biased variance) at a quarter of
            the projection's cost. Only the running variance differs by a hair: it is the unbiased one,
            which depends on the number of pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        upsample: int = 1,
        order: Order = "commuted",
    ) -> None:
        if stride > 1 and upsample > 1:
            raise ValueError(f"a bottleneck either strides or upsamples, got stride={stride}, upsample={upsample}")
        super().__init__()
        inner = EXPANSION * in_channels
        self.order = order
        self.expand = ConvNormAct(in_channels, inner, kernel=1)
        self.depthwise = ConvNormAct(inner, inner, kernel=3, stride=stride, groups=inner)
        self.project = ConvNormAct(inner, out_channels, kernel=1)
        self.upsample = nn.Upsample(scale_factor=upsample, mode="nearest") if upsample > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H * upsample / stride, W * upsample / stride)."""
        first, second = (self.upsample, self.project) if self.order == "paper" else (self.project, self.upsample)
        out: Tensor = second(first(self.depthwise(self.expand(x))))
        return out


class Obfuscator(nn.Module):
    """The network on the device: picture in, obfuscated picture out, of the same size.

    Source: paper, table 4; spatial sizes 32, 16, 8, 4, 8, 16, 32 for a 32-pixel picture.

    Args:
        order: where the upsampling stands inside the upsampling bottlenecks, see `Bottleneck`. Both orders
            have the same parameters under the same names and compute the same function.

    Attributes:
        size_multiple: picture sides must be multiples of this (8).
    """

    size_multiple = 8

    def __init__(self, *, order: Order = "commuted") -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 32, kernel=3)
        self.down = nn.Sequential(
            Bottleneck(32, 32, stride=2), Bottleneck(32, 64, stride=2), Bottleneck(64, 128, stride=2)
        )
        self.up = nn.Sequential(
            Bottleneck(128, 64, upsample=2, order=order),
            Bottleneck(64, 32, upsample=2, order=order),
            Bottleneck(32, 3, upsample=2, order=order),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Obfuscates.

        Args:
            images: (N, 3, H, W) float32 in [0, 1]; H and W multiples of 8.

        Returns:
            (N, 3, H, W) float32 in the scale of pictures, not bounded.

        Raises:
            ValueError: the shape does not fit.
        """
        if not torch.compiler.is_exporting() and (
            images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8
        ):
            raise ValueError(f"expected (N, 3, H, W) with H and W multiples of 8, got {tuple(images.shape)}")
        out: Tensor = self.up(self.down(self.stem(images)))
        return out


class Deobfuscator(Obfuscator):
    """The attacker of the paper's training: the same architecture, obfuscated picture in, picture out.

    Source: paper, table 4 ("Obfuscator and deobfuscator network architecture").
    """
