"""Networks that reconstruct images: from (N, C, H, W) to an image (N, 3, H, W), or a correction to one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.models.obfuscator import Deobfuscator


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, without normalisation; starts as the identity.

    Source: Lim et al. 2017 (EDSR), figure 2c: batch norm removed, as it blurs reconstructed images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class Attention(nn.Module):
    """Self-attention over all places; starts as the identity.

    Source: Vaswani et al. 2017; in this place of a U-Net: Ho et al. 2020.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels)
        self.into = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        count, channels, height, width = x.shape
        into = self.into(self.norm(x)).reshape(count, 3, self.heads, channels // self.heads, height * width)
        query, key, value = into.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2)
        out: Tensor = x + self.out(mixed.reshape(x.shape))
        return out


class ResidualNet(nn.Module):
    """Residual blocks at a quarter of the resolution.

    Source: Lim et al. 2017 (EDSR) for the blocks; pixel unshuffling in front as in Shi et al. 2016, reversed.
    """

    size_multiple = 4

    def __init__(self, channels: int, *, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * channels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(depth)),
            _zeroed(nn.Conv2d(width, 48, 3, padding=1)),
            nn.PixelShuffle(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), sides multiples of 4 -> (N, 3, H, W)."""
        out: Tensor = self.body(x)
        return out


class UNet(nn.Module):
    """A U-Net at half, quarter and eighth of the resolution, with attention at the two coarse ones.

    Source: Ronneberger et al. 2015; attention as in Ho et al. 2020.
    """

    size_multiple = 8

    def __init__(self, channels: int, *, widths: tuple[int, int, int] = (48, 96, 192)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, fine, 3, padding=1))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.encode = nn.ModuleList([ResidualBlock(fine), nn.Sequential(ResidualBlock(middle), Attention(middle))])
        self.bottom = nn.Sequential(ResidualBlock(coarse), Attention(coarse), ResidualBlock(coarse))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decode = nn.ModuleList([ResidualBlock(fine), ResidualBlock(middle)])
        self.head = nn.Sequential(_zeroed(nn.Conv2d(fine, 12, 3, padding=1)), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), sides multiples of 8 -> (N, 3, H, W)."""
        levels = []
        x = self.stem(x)
        for encode, down in zip(self.encode, self.down, strict=True):
            x = encode(x)
            levels.append(x)
            x = down(x)
        x = self.bottom(x)
        for level in reversed(range(2)):
            x = self.decode[level](levels[level] + self.up[level](x))
        out: Tensor = self.head(x)
        return out


def at_any_size(net: nn.Module, x: Tensor) -> Tensor:
    """Run a net whose `size_multiple` the sides need not have: (N, C, H, W) -> (N, 3, H, W) float32."""
    height, width = x.shape[2:]
    multiple = int(net.size_multiple)  # type: ignore[arg-type]
    padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    out: Tensor = net(padded)[..., :height, :width].float()
    return out


def patch_discriminator() -> nn.Sequential:
    """Return a network from images (N, 3, H, W) to the realism of every 4x4 patch, (N, 1, H / 4, W / 4), unbounded.

    Source: Isola et al. 2017, section 3.2.2, with two strides for small images.
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 3, padding=1),
    )


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """Set a convolution to zero, so that the residual branch has no effect at first."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _from_grey(net: nn.Module) -> nn.Module:
    """Make a net of corrections one of images: with its last layer at zero, it begins at mid-grey."""
    *_, last = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    assert last.bias is not None
    nn.init.constant_(last.bias, 0.5)
    return net


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "paper": Deobfuscator,
    "residual": lambda: _from_grey(ResidualNet(3)),
    "unet": lambda: _from_grey(UNet(3)),
}
"""Networks from obfuscated images (N, 3, H, W) to reconstructed ones, with fresh weights; sides multiples of 8. The
paper's has as many parameters as the obfuscator, the others four and six times as many."""
