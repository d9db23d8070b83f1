"""The paper's obfuscator and deobfuscator, and what can be added to the obfuscator.

Source: Leroux et al. 2018, appendix A and table 4, in the reading that reproduces its counts: 324,518
parameters, and 26,449,920 multiply-accumulates for a 3x32x32 image in its order. The additions are not the paper's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.lab.models.batch_norm import expand_normalized
from sfumato.lab.models.fixed_ops import Removal, round_to_8_bits

Order = Literal["commuted", "paper"]

EXPANSION = 6
"""How many times wider than its input a bottleneck is inside (paper, appendix A)."""


class ConvNormAct(nn.Module):
    """A convolution without bias whose padding keeps the size, batch norm and leaky ReLU, "for all layers".

    Source: paper, appendix A.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = self.act(
            expand_normalized(x, self.conv, self.norm) if self._widens(x) else self.norm(self.conv(x))
        )
        return out

    def _widens(self, x: Tensor) -> bool:
        """Return whether to compute the norm from the input: on a CPU, and as precisely as a batch norm would be."""
        widening = self.conv.kernel_size == (1, 1) and self.conv.out_channels > self.conv.in_channels
        whole = torch.finfo(x.dtype).bits >= 32 and not torch.is_autocast_enabled("cpu")
        return self.training and widening and whole and x.device.type == "cpu"


class Bottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise and 1x1 projection.

    There is no skip connection, and the last activation is kept, as in the paper (not as in MobileNetV2).

    The depthwise convolution strides, or a nearest-neighbour upsampling by the factor `upsample` follows. The order
    "paper" puts it before the projection, as the paper counts its operations. "commuted" puts it after everything: a
    1x1 convolution, a batch norm and a leaky ReLU act on each pixel alone, so the function is the same (in training
    mode too, as repeating every pixel equally often changes neither mean nor biased variance) at a quarter of the
    projection's cost. Only the running variance differs by a hair: it is the unbiased one, which depends on the number
    of pixels.

    Source: paper, appendix A ("Bottleneck module").
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, upsample: int = 1, order: Order = "commuted"
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


class Noise(nn.Module):
    """Gaussian noise of learned size, one per channel, sampled for each image and number.

    It is sampled in evaluation mode too: without it nothing would bound the leakage. The size does not depend on the
    image, so that it can be certified.

    Source: Kingma and Welling 2014, section 2.4 (reparametrisation).
    """

    first_std = 0.5
    """About half of what a fresh batch norm with a leaky ReLU gives, so that the first code is informative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((channels, 1, 1), self.first_std).log())

    @property
    def std(self) -> Tensor:
        """Standard deviations, (channels, 1, 1) float32, positive."""
        return self.log_std.exp()

    def forward(self, code: Tensor) -> Tensor:
        """(N, channels, H, W) float -> the same shape."""
        return code + self.std * torch.randn_like(code)


class Obfuscator(nn.Module):
    """The network on the device: images to obfuscated images of the same size.

    Source: paper, table 4; spatial sizes 32, 16, 8, 4, 8, 16, 32 for a 32-pixel image.

    Args:
        order: where the upsampling stands inside the upsampling bottlenecks, see `Bottleneck`. Both orders
            have the same parameters under the same names and compute the same function.
        removal: what is removed from the image first; None for nothing.
        noisy: add noise to the code, the narrowest layer (128 x H/8 x W/8). All later layers depend on the image
            through it alone, so that a bound on its information is one on the payload's (data processing inequality:
            Cover and Thomas 2006, theorem 2.8.1); and they can denoise the decoded image, which noise on the output
            would leave to the classifier. It takes 128 more parameters.
        eight_bit: round the obfuscated image to multiples of 1/255 in [0, 1].
    """

    size_multiple = 8
    """Image sides must be multiples of this."""
    code_channels = 128

    def __init__(
        self, *, order: Order = "commuted", removal: Removal | None = None, noisy: bool = False, eight_bit: bool = False
    ) -> None:
        super().__init__()
        self.removal = removal
        self.stem = ConvNormAct(3, 32, kernel=3)
        self.down = nn.Sequential(
            Bottleneck(32, 32, stride=2), Bottleneck(32, 64, stride=2), Bottleneck(64, self.code_channels, stride=2)
        )
        self.noise = Noise(self.code_channels) if noisy else None
        self.up = nn.Sequential(
            Bottleneck(self.code_channels, 64, upsample=2, order=order),
            Bottleneck(64, 32, upsample=2, order=order),
            Bottleneck(32, 3, upsample=2, order=order),
        )
        self.eight_bit = eight_bit
        if eight_bit:
            self.begin_within_images()

    @property
    def _last(self) -> Bottleneck:
        last = self.up[-1]
        assert isinstance(last, Bottleneck)
        return last

    def begin_within_images(self) -> None:
        """Set the last layer so that a fresh network decodes to [0, 1], not around 0."""
        nn.init.constant_(self._last.project.norm.weight, 0.25)
        nn.init.constant_(self._last.project.norm.bias, 0.5)

    @torch.no_grad()
    def begin_as(self, trunk: ObfuscatorTrunk, mean: Tensor, std: Tensor) -> None:
        """Take the weights of a trunk; the last bottleneck stays as it is.

        Args:
            trunk: trained on images that were normalised.
            mean: per channel, that was subtracted from images in [0, 1]; (3,) float32.
            std: per channel, that they were then divided by; (3,) float32.
        """
        self.stem.load_state_dict(trunk.stem.state_dict())
        self.down.load_state_dict(trunk.down.state_dict())
        self.up[:-1].load_state_dict(trunk.up.state_dict())
        # The stem computes the same of images that are not normalised, except next to the padding, which is black now.
        weight, norm = self.stem.conv.weight, self.stem.norm
        weight.div_(std.view(1, 3, 1, 1))
        assert norm.running_mean is not None
        norm.running_mean += (weight * mean.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1], sides multiples of 8 -> the code without its noise, (N, 128, H/8, W/8).

        Raises:
            ValueError: the shape does not fit.
        """
        if not torch.compiler.is_exporting() and (
            images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8
        ):
            raise ValueError(f"expected (N, 3, H, W) with H and W multiples of 8, got {tuple(images.shape)}")
        code: Tensor = self.down(self.stem(images if self.removal is None else self.removal(images)))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Codes (N, 128, H/8, W/8) float32, here with noise added if there is some -> images (N, 3, H, W) float32."""
        if self.noise is not None:
            code = self.noise(code)
        out: Tensor = self.up(code)
        return round_to_8_bits(out) if self.eight_bit else out

    def decode_small(self, code: Tensor) -> Tensor:
        """As `decode`, without the last upsampling, and cheaper.

        Upsampling repeats pixels, and a 1x1 convolution, a batch norm and a leaky ReLU act on each pixel alone. So each
        upsampling can wait until after the next bottleneck's expansion, which then costs a quarter; the last one can
        wait until after any other operation on single pixels.

        Returns:
            (N, 3, H/2, W/2) float32; `last_upsampling` of it is the result of `decode`.
        """
        x = code if self.noise is None else self.noise(code)
        upsample: nn.Module = nn.Identity()
        for bottleneck in self.up:
            assert isinstance(bottleneck, Bottleneck)
            x = bottleneck.project(bottleneck.depthwise(upsample(bottleneck.expand(x))))
            upsample = bottleneck.upsample
        return round_to_8_bits(x) if self.eight_bit else x

    @property
    def last_upsampling(self) -> nn.Module:
        """See `decode_small`."""
        return self._last.upsample

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> obfuscated images of the same shape and scale, bounded only where rounded.

        Raises:
            ValueError: the shape does not fit, see `encode`.
        """
        return self.decode(self.encode(images))


class Deobfuscator(Obfuscator):
    """The attacker of the paper's training: the same architecture, obfuscated image in, image out.

    Source: paper, table 4 ("Obfuscator and deobfuscator network architecture").
    """


class ObfuscatorTrunk(nn.Module):
    """The obfuscator without its last bottleneck, as a classifier: a linear head on the features' averages.

    All that the obfuscator computes but the drawing of its image. It learns without the classifier in the cloud and
    without a deobfuscator, which take most of the time of an obfuscator's step; the obfuscator then begins with its
    weights, see `Obfuscator.begin_as`.
    """

    channels = 32

    def __init__(self, classes: int) -> None:
        super().__init__()
        whole = Obfuscator()
        self.stem, self.down, self.up = whole.stem, whole.down, whole.up[:-1]
        self.head = nn.Linear(self.channels, classes)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), sides multiples of 8 -> maps (N, 32, H/2, W/2)."""
        out: Tensor = self.up(self.down(self.stem(images)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), sides multiples of 8 -> logits (N, classes)."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


class NoisyCode:
    """The noisy code of an obfuscator for images (height, width): what a certificate bounds."""

    noise_kind = "gaussian"

    def __init__(self, obfuscator: Obfuscator, height: int, width: int) -> None:
        if obfuscator.noise is None:
            raise ValueError("this obfuscator has no noise")
        self._obfuscator, self._noise = obfuscator, obfuscator.noise
        self._shape = obfuscator.code_channels, height // obfuscator.size_multiple, width // obfuscator.size_multiple

    def mean(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] -> the code without its noise, (N, 128, H/8, W/8); differentiable."""
        return self._obfuscator.encode(images)

    def noise_std(self) -> Tensor:
        """Standard deviation of each number's noise, (128, H/8, W/8) float32."""
        return self._noise.std.detach().expand(self._shape)
