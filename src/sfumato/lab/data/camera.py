"""Many frames of one scene, as a fixed camera takes them: the scene stays, and every frame is a little different."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Camera:
    """How much frames differ; each amount is independent from frame to frame.

    Attributes:
        shift: standard deviation of the shift, as a share of the image's side: vibration; at 32 pixels, half a pixel.
        zoom: standard deviation of the magnification around 1: focus and exposure of the lens.
        brightness: standard deviation of a factor around 1: light and exposure.
        noise: standard deviation of each pixel's noise, black is 0 and white is 1: the sensor; 5 of 255 levels.
    """

    shift: float = 1 / 64
    zoom: float = 0.01
    brightness: float = 0.05
    noise: float = 0.02


STILL = Camera(0.0, 0.0, 0.0, 0.0)
"""Every frame is the scene itself."""


def frames(scene: Tensor, count: int, camera: Camera, generator: torch.Generator) -> Tensor:
    """Take frames of a scene (3, H, W) uint8; the generator is on the CPU.

    Returns:
        (count, 3, H, W) uint8. Shifts and zoom are interpolated bilinearly, and edges are reflected.
    """
    images = (scene.float() / 255).expand(count, -1, -1, -1)
    moved, zoomed, light = (torch.randn(count, n, generator=generator) for n in (2, 1, 1))
    if camera.shift or camera.zoom:
        # The grid spans 2 from edge to edge.
        theta = torch.eye(2, 3).repeat(count, 1, 1)
        theta[:, :, :2] *= 1 - camera.zoom * zoomed[:, :, None]
        theta[:, :, 2] = 2 * camera.shift * moved
        grid = F.affine_grid(theta, [*images.shape], align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    images = images * (1 + camera.brightness * light[:, :, None, None])
    if camera.noise:
        images = images + camera.noise * torch.randn(images.shape, generator=generator)
    return (images * 255).round().clamp(0, 255).byte()
