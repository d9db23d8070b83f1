"""Identity, downsampling, blur of the image or the face, pixelation and noise: nothing to learn, no key."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.lab.baselines.method import Method, NoisyMethod

_FACE = 0.9, 0.7
"""Height and width of the ellipse, as shares of the image's."""


class Identity(Method):
    """Changes nothing: the no-obfuscation baseline."""

    summary = "sends the image itself"
    source = "-"

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return images.clone()


class Downsample(Method):
    """Means over squares, interpolated bilinearly to the classifier's size.

    Source: Ryoo et al. 2017 (privacy by extremely low resolution).
    """

    summary = "lowers the resolution, then interpolates"
    source = "Ryoo et al. 2017"
    strength_help = "the factor per side"
    default = 2.0

    def _set_up(self) -> None:
        self.side = self._tiles()

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        small = F.avg_pool2d(images, self.side)
        return F.interpolate(small, (self.height, self.width), mode="bilinear", align_corners=False)


class Pixelate(Downsample):
    """Replaces every square by its mean colour.

    Source: Hill et al. 2016 (mosaicing).
    """

    summary = "paints squares with their mean colour"
    source = "Hill et al. 2016"
    strength_help = "the side of a square in pixels"

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return F.interpolate(F.avg_pool2d(images, self.side), scale_factor=float(self.side), mode="nearest")


class Blur(Method):
    """Convolution with a Gaussian cut at three standard deviations; the image's edge is repeated outwards.

    Source: Hill et al. 2016 (blurring).
    """

    summary = "Gaussian blur"
    source = "Hill et al. 2016"
    strength_help = "the standard deviation of the blur in pixels"
    default = 0.8
    kernel: Tensor

    def _set_up(self) -> None:
        sigma = self._positive()
        self.radius = math.ceil(3 * sigma)
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.register_buffer("kernel", (weights / weights.sum()).float())

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        r = self.radius
        padded = F.pad(images, (r, r, r, r), mode="replicate")
        rows = F.conv2d(padded, self.kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
        return F.conv2d(rows, self.kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)


class BlurFace(Blur):
    """Blurs an ellipse in the middle, where a cropped and aligned portrait has its face; the rest stays as it is.

    It looks for no face: an image of something else is blurred in the same place.

    Source: Yang et al. 2022 (A Study of Face Obfuscation in ImageNet), which blurs detected faces alone.
    """

    summary = "blurs the face of a cropped and aligned portrait"
    source = "Yang et al. 2022"
    default = 3.0
    mask: Tensor

    def _set_up(self) -> None:
        super()._set_up()
        down, across = torch.linspace(-1, 1, self.height)[:, None], torch.linspace(-1, 1, self.width)
        self.register_buffer("mask", ((down / _FACE[0]) ** 2 + (across / _FACE[1]) ** 2 <= 1).float())

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return images + self.mask * (super().forward(images) - images)


class Noise(NoisyMethod):
    """Gaussian noise, fresh for every image and number, not cut to [0, 1].

    For measurements only: ONNX Runtime's random numbers are not cryptographically secure.

    Source: the Gaussian mechanism, Dwork and Roth 2014, appendix A.
    """

    summary = "adds Gaussian noise"
    source = "Dwork and Roth 2014"
    strength_help = "the noise's standard deviation, in units of the [0, 1] scale"
    default = 0.05
    noise_kind = "gaussian"

    def _set_up(self) -> None:
        self.std = self._positive()

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        return images + self.std * torch.randn_like(images)

    def mean(self, images: Tensor) -> Tensor:
        """See `NoisyMethod`."""
        return images

    def noise_std(self) -> Tensor:
        """See `NoisyMethod`."""
        return torch.full((3, self.height, self.width), self.std)
