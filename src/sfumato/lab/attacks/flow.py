"""Rectified flows, from base images with noise to images: what the generative attackers share.

A point `z` of a flow stands for the image `base + spread * z`: Gaussian noise at time 0, an image at time 1. The
network predicts the end, which the velocity follows from: where the payload tells the image, that is easy to learn.

Source: Liu et al. 2023 (rectified flow), equation 1; the start at an estimate with noise is that of Ohayon et al. 2025
(PMRF), algorithm 1; that the image is predicted and not the velocity, Li and He 2025 (arXiv 2511.13720).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.attacks.fit import fit_decoder, in_parts
from sfumato.lab.attacks.protocol import CPU, AttackBudget, Reconstruct
from sfumato.lab.attacks.threat_models import Pairs
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models import autocast
from sfumato.lab.models.decoders import UNet, at_any_size

STEPS = 10
"""Of Euler's method, from noise to an image."""
WIDTHS = 56, 112, 224
"""Of the network: 2.9 M parameters."""
LEARNING_RATE = 1e-3
_WAVES = 3
_LEAST_SPREAD = 1e-3
"""A quarter of a level of an 8-bit image: an estimate that is exact stays so, and nothing is divided by 0."""


@dataclass(frozen=True)
class Given:
    """What a flow is told about images.

    Attributes:
        base: (N, 3, H, W) float32 in [0, 1], where it starts.
        planes: (N, P, H, W) float32, what else is known; P may be 0.
    """

    base: Tensor
    planes: Tensor


Condition = Callable[[Tensor], Given]
"""Payloads (N, C, H', W') float32 -> what a flow is told about their images."""


class Endpoint(nn.Module):
    """The network of a flow: `z`, base, time and planes, as `_shown` stacks them, to the expected `z` at time 1.

    It starts at the base: trained too shortly it gives the mean again. With a skip from `z`, as in Karras et al. 2022,
    it would give noise, and learn more slowly to read a payload that tells all.
    """

    def __init__(self, planes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = UNet(7 + _WAVES + planes, widths=widths)

    def forward(self, shown: Tensor) -> Tensor:
        """(N, 7 + waves + planes, H, W) float32 -> (N, 3, H, W) float32."""
        return at_any_size(self.net, shown)


@dataclass(frozen=True)
class Flow:
    """A trained flow.

    Attributes:
        net: see `Endpoint`.
        spread: standard deviation of the noise, in pixel values in [0, 1].
    """

    net: nn.Module
    spread: float
    device: torch.device = CPU

    @torch.no_grad()
    def endpoint(self, z: Tensor, time: float, given: Given) -> Tensor:
        """Return the expected end of the way from points (N, 3, H, W) float32 at a time in [0, 1); the shape stays."""
        shown = _shown(z, torch.full((len(z),), time), given)
        with autocast(self.device):
            parts = in_parts(shown, (z.shape[2], z.shape[3]), times=4)
            return torch.cat([self.net(part.to(self.device)).float().cpu() for part in parts])

    def images(self, z: Tensor, given: Given) -> Tensor:
        """Return the images that points stand for, within [0, 1]."""
        return (given.base + self.spread * z).clamp(0, 1)

    def draw(self, noise: Tensor, given: Given) -> Tensor:
        """Carry noise (N, 3, H, W) to images, likewise in [0, 1], by Euler's method."""
        z = noise
        for step in range(STEPS):
            z = z + (self.endpoint(z, step / STEPS, given) - z) / (STEPS - step)  # the velocity times the step
        return self.images(z, given)


@dataclass(frozen=True, eq=False)
class _Points(Pairs):
    """Points on straight ways from noise to images, and their ends: pairs for `fit_decoder`."""

    pairs: Pairs
    condition: Condition
    spread: float

    @torch.no_grad()
    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the ends (B, 3, H, W) and what the network is shown."""
        images, observed = self.pairs.batch(indices, generator)
        given = self.condition(observed)
        end = (images - given.base) / self.spread
        noise, time = torch.randn(end.shape, generator=generator), torch.rand(len(end), generator=generator)
        return end, _shown(torch.lerp(noise, end, time[:, None, None, None]), time, given)


def _shown(z: Tensor, time: Tensor, given: Given) -> Tensor:
    """Stack what the network sees; time (N,) in [0, 1] as a plane, and as cosines."""
    waves = (math.pi * time[:, None] * torch.arange(1, _WAVES + 1)).cos()
    times = torch.cat([time[:, None], waves], dim=1)[:, :, None, None].expand(-1, -1, *z.shape[2:])
    return torch.cat([z, 4 * given.base - 2, times, given.planes], dim=1)


def fit_flow(
    pairs: Pairs,
    condition: Condition,
    budget: AttackBudget,
    *,
    identity: str,
    widths: tuple[int, int, int] = WIDTHS,
) -> tuple[Flow, int]:
    """Train a flow on an attacker's own pairs.

    Args:
        pairs: at least 5.
        condition: the payload -> what the flow is told; its base's error is the flow's spread.
        budget: of the attacker; its `images` are those of the flow.
        identity: see `fit_decoder`.
        widths: of the network.

    Returns:
        The flow, and how many training images it saw, with repetition.

    Raises:
        AuditError: as `fit_decoder`, or the base is not finite.
        Interrupted: Ctrl-C or SIGTERM; the state was saved if there is a checkpoint.
    """
    images, observed = pairs.examples(torch.Generator().manual_seed(budget.seed))
    given = condition(observed)
    spread = float((images - given.base).square().mean().sqrt())
    if not math.isfinite(spread):
        raise AuditError("the images to start from are not finite: the payload is not, or its decoder is broken")
    points = _Points(pairs.images, pairs, condition, max(spread, _LEAST_SPREAD))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        net = Endpoint(given.planes.shape[1], widths)
    fit = partial(fit_decoder, net, points, nn.MSELoss(), budget)
    fitted = fit(learning_rate=LEARNING_RATE, identity=identity, images=False)
    return Flow(fitted.net, points.spread, budget.device), fitted.images_seen


def noises(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return noise to start from, (count, 3, H, W) float32: the same for every payload, whatever comes with it."""
    return torch.randn((count, 3, *size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def distances(encode: Reconstruct, images: Tensor, observed: Tensor) -> Tensor:
    """Return how far payloads of images (M, 3, H, W) are from those observed (M, C, H', W'): mean squares, (M,).

    Channels of `observed` after those of the payload are not compared.
    """
    parts = zip(images.split(INFERENCE_BATCH), observed.split(INFERENCE_BATCH), strict=True)  # type: ignore[no-untyped-call]
    apart = [(sent := encode(x)) - y[:, : sent.shape[1]] for x, y in parts]
    return torch.cat([part.square().flatten(1).mean(dim=1) for part in apart])


def check_payloads(observed: Tensor, example: Tensor) -> None:
    """Check payloads (N, C, H', W') before an attack.

    Raises:
        AuditError: another size than in the example, or numbers that are not finite.
    """
    if observed.ndim != 4 or observed.shape[1:] != example.shape[1:]:
        got, wanted = tuple(observed.shape), tuple(example.shape[1:])
        raise AuditError(f"payloads {got}, but the attacker learned from payloads (N, {str(wanted)[1:]}: one size only")
    if not observed.isfinite().all():
        raise AuditError("the payload holds numbers that are not finite: nothing can be compared with them")
