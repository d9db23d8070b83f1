"""The independent attacker's network, losses and training, as `benchmarks/independent_attacker.md` specifies them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.models.precision import autocast
from sfumato.progress import Progress, silent

WIDTHS, BLOCKS = (32, 64, 128, 256), 2
LEARNING_RATE, WEIGHT_DECAY, MOST_NORM, WARM_UP = 1e-3, 0.01, 1.0, 0.05
LEVELS = 4
SIDE, LEAST_BATCH, INFERENCE_BATCH = 32, 8, 250
SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Settings:
    """How long one network trains.

    Attributes:
        steps: gradient steps.
        batch: images of 32x32 in each; see `batch_of`.
        held_out: images for the choice of the loss, at most, and at most a tenth of all.
        test_images: that are attacked; None for all.
        seed: of split, initial weights and the order of images.
    """

    steps: int = 256
    batch: int = 128
    held_out: int = 5_000
    test_images: int | None = None
    seed: int = 731

    @classmethod
    def trial(cls, images: int) -> Settings:
        """Return settings that try everything on so many images, and whose figures mean nothing."""
        return cls(steps=max(1, images // 16), batch=16, held_out=images, test_images=images)

    def batch_of(self, height: int, width: int) -> int:
        """Return the images in a batch: as many pixels as `batch` images of 32x32, but at least 8 images."""
        return min(self.batch, max(LEAST_BATCH, self.batch * SIDE * SIDE // (height * width)))


def l2_loss(difference: Tensor) -> Tensor:
    """Return the mean squared difference."""
    return difference.square().mean()


def l1_loss(difference: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return difference.abs().mean()


def laplacian_loss(difference: Tensor) -> Tensor:
    """Return the sum of mean absolute differences over the levels of a Laplacian pyramid.

    Args:
        difference: of two images, (N, C, H, W) float32. Their pyramids are linear, so this one's is the difference.

    Source: Bojanowski et al. 2018, section 3.2: weights of 4^j over sums, which are equal weights over means.
    """
    total = difference.new_zeros(())
    for _ in range(LEVELS - 1):
        if min(difference.shape[2:]) < 2:
            break
        coarse = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(coarse, size=difference.shape[2:])).abs().mean()
        difference = coarse
    return total + difference.abs().mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"L2": l2_loss, "L1": l1_loss, "Laplacian": laplacian_loss}


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.body = nn.Sequential(_conv(width, width), *last)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Inverter(nn.Module):
    """A U-Net from the payload to the image.

    Args:
        payloads: (N, C, H', W') float32, examples: their channels' mean and deviation standardise the input.
        mean_image: (3, H, W) float32, which is the output before training.
    """

    mean: Tensor
    std: Tensor
    mean_image: Tensor
    places: Tensor

    def __init__(self, payloads: Tensor, mean_image: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(payloads, dim=(0, 2, 3), keepdim=True)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > SMALLEST_STD, std, 1.0))
        self.register_buffer("mean_image", mean_image)
        axes = (torch.linspace(-1, 1, side) for side in mean_image.shape[1:])
        self.register_buffer("places", torch.stack(torch.meshgrid(*axes, indexing="ij")))
        channels, first, steps = payloads.shape[1], WIDTHS[0], list(pairwise(WIDTHS))
        stem = nn.Sequential(_conv(channels + 2, first), _conv(first, first))
        self.down = nn.ModuleList(
            [stem, *(nn.Sequential(_conv(wide, wider, 2), _conv(wider, wider)) for wide, wider in steps)]
        )
        self.bottleneck = nn.Sequential(*(_Residual(WIDTHS[-1]) for _ in range(BLOCKS)))
        self.narrow = nn.ModuleList(nn.Conv2d(wider, wide, 1) for wide, wider in reversed(steps))
        self.up = nn.ModuleList(nn.Sequential(_conv(2 * wide, wide), _conv(wide, wide)) for wide, _ in reversed(steps))
        self.head, self.skip = nn.Conv2d(first, 3, 3, padding=1), nn.Conv2d(channels, 3, 1, bias=False)
        for parameter in (*self.head.parameters(), *self.skip.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, payloads: Tensor) -> Tensor:
        """(N, C, H', W') float32 -> images (N, 3, H, W) float32, not cut to [0, 1]."""
        size = self.mean_image.shape[1:]
        x = (payloads - self.mean) / self.std
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear")
        placed = torch.cat([x, self.places.expand(len(x), -1, -1, -1)], dim=1)
        with autocast(x.device):
            features = self._features(placed.contiguous(memory_format=torch.channels_last))
        image: Tensor = self.mean_image + self.skip(x) + self.head(features.float())
        return image

    def _features(self, x: Tensor) -> Tensor:
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
        x = self.bottleneck(kept.pop())
        for narrow, up in zip(self.narrow, self.up, strict=True):
            beside = kept.pop()
            x = up(torch.cat([F.interpolate(narrow(x), size=beside.shape[2:]), beside], dim=1))
        return x

    @torch.no_grad()
    def reconstruct(self, payloads: Tensor) -> Tensor:
        """(N, C, H', W') float32 -> images (N, 3, H, W) float32 in [0, 1], both where the caller's tensors are."""
        self.eval()
        parts = payloads.split(INFERENCE_BATCH)  # type: ignore[no-untyped-call]
        return torch.cat([self(part.to(self.mean.device)).clamp(0, 1).to(part.device) for part in parts])


def fit(
    payloads: Tensor,
    images: Tensor,
    loss: str,
    settings: Settings,
    *,
    device: torch.device,
    progress: Progress = silent,
    stage: str = "training",
) -> Inverter:
    """Train a network on pairs.

    Args:
        payloads: (N, C, H', W') float32, one for each image.
        images: (N, 3, H, W) uint8.
        loss: a name in `LOSSES`.
        settings: how long.
        device: where it is trained.
        progress: see `sfumato.progress.Progress`.
        stage: what the training is called there.

    Raises:
        AuditError: fewer than two pairs, or a loss that is not finite.
    """
    if len(images) < 2:
        raise AuditError(f"{len(images)} pairs: an attacker needs at least two to learn from")
    net = _built(payloads, images, settings.seed).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batch = min(settings.batch_of(*images.shape[2:]), len(images))
    for step, rows in enumerate(_batches(len(images), batch, settings)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate(step, settings.steps)
        reached = net(payloads[rows].to(device))
        error = LOSSES[loss](reached - images[rows].to(device).float() / 255)
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), MOST_NORM)
        optimizer.step()
        if not math.isfinite(value := error.item()):
            raise AuditError(f"the independent attacker's {loss} loss is {value} at step {step}")
        progress(stage, step + 1, settings.steps, f"loss {value:.4f}")
    return net.eval()


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a linear rise over the first 5 %, then a cosine to 0."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1))) / 2


def step_s(height: int, width: int, settings: Settings, *, device: torch.device) -> float:
    """Time a training step on random images, in seconds."""
    count = settings.batch_of(height, width)
    images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    times: list[float] = []

    def tick(stage: str, done: int, total: int, note: str = "") -> None:
        times.append(time.monotonic())

    few = Settings(steps=4, batch=settings.batch)
    fit(images.float() / 255, images, "L2", few, device=device, progress=tick)
    return (times[-1] - times[0]) / (len(times) - 1)


def _built(payloads: Tensor, images: Tensor, seed: int) -> Inverter:
    mean_image = images.float().mean(dim=0) / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Inverter(payloads, mean_image)


def _batches(count: int, batch: int, settings: Settings) -> Iterator[Tensor]:
    """Yield the rows of each step's images; every image comes once before any comes again."""
    source, left = torch.Generator().manual_seed(settings.seed), torch.empty(0, dtype=torch.int64)
    for _ in range(settings.steps):
        if len(left) < batch:
            left = torch.cat([left, torch.randperm(count, generator=source)])
        yield left[:batch]
        left = left[batch:]
