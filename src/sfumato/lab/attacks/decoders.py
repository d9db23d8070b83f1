"""Learned decoders: networks trained on pairs to turn the payload back into the image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.attacks.fit import fit_decoder, in_parts
from sfumato.lab.attacks.linear import LinearEstimate, solve
from sfumato.lab.attacks.losses import Adversarial, Structure
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared, Reconstruct
from sfumato.lab.attacks.threat_models import Knowledge, Pairs
from sfumato.lab.models import Deobfuscator, autocast
from sfumato.lab.models.decoders import ResidualNet, UNet, at_any_size


class Decoder(nn.Module):
    """A network between the fixed parts that every decoder needs.

    The payload is standardised by channel, brought to the image's size, padded to what the network
    takes; a linear estimate of the image, if there is one, is shown to the network and corrected by it.

    Args:
        net: (N, inputs, h, w) -> (N, 3, h, w); h and w are multiples of its `size_multiple`.
        mean: (C,) float32, of the payload's channels.
        std: (C,) float32, likewise; 0 for a channel that never changes.
        size: (H, W) of the image.
        estimate: the linear one; without it the network makes the image alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Tensor, std: Tensor, size: tuple[int, int], estimate: LinearEstimate | None
    ) -> None:
        super().__init__()
        self.net, self.size, self.estimate = net, size, estimate
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1).clamp_min(1e-6))

    def forward(self, observed: Tensor) -> Tensor:
        """(N, C, H', W') float32 -> (N, 3, H, W) float32, not bounded."""
        x = as_planes(observed, self.mean, self.std, self.size)
        guess = None
        if self.estimate is not None:
            with torch.autocast(x.device.type, enabled=False):
                guess = self.estimate(observed)
            x = torch.cat([x, guess - 0.5], dim=1)
        out = at_any_size(self.net, x)
        return out if guess is None else guess + out


def as_planes(observed: Tensor, mean: Tensor, std: Tensor, size: tuple[int, int]) -> Tensor:
    """Standardise payloads (N, C, H', W') by channel, (1, C, 1, 1), and bring them to the image's size (H, W)."""
    x = (observed - mean) / std
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", antialias=x.shape[-1] > size[1])


class PaperNet(nn.Module):
    """The paper's deobfuscator; other than three channels of the payload are mixed to three first."""

    size_multiple = Deobfuscator.size_multiple

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Identity() if channels == 3 else nn.Conv2d(channels, 3, 1)
        self.body = Deobfuscator().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.body.begin_within_images()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), sides multiples of 8 -> (N, 3, H, W)."""
        # Depthwise convolutions are slow in half precision on a CPU.
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.body(self.mix(x.float()).contiguous(memory_format=torch.channels_last))
        return out


def network(net: nn.Module, size: tuple[int, int], device: torch.device) -> Reconstruct:
    """Return a trained decoder as a function that gives bounded images on the CPU."""

    @torch.no_grad()
    def reconstruct(observed: Tensor) -> Tensor:
        with autocast(device):
            parts = [net(part.to(device)).float().clamp(0, 1).cpu() for part in in_parts(observed, size, times=4)]
        return torch.cat(parts)

    return reconstruct


@dataclass(frozen=True)
class LearnedDecoder(Attacker):
    """A decoder as an attacker.

    Attributes:
        name: for people, and to distinguish trials.
        build: number of input channels -> network, see `Decoder`.
        loss: makes the loss, see `sfumato.lab.attacks.fit.Loss`.
        corrects: start from the linear estimate and correct it.
        learning_rate: of Adam.
    """

    name: str
    build: Callable[[int], nn.Module]
    loss: Callable[[], nn.Module] = nn.MSELoss
    corrects: bool = True
    learning_rate: float = 1e-3

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        pairs = self._pairs(knowledge)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(budget.seed)
            decoder = self._decoder(pairs, (knowledge.height, knowledge.width), budget.seed)
            loss = self.loss()
        params = sum(p.numel() for p in decoder.net.parameters())
        identity = f"{self.name}, {knowledge.threat}, {len(pairs)}, {budget.images}, {budget.seed}"
        fitted = fit_decoder(decoder, pairs, loss, budget, learning_rate=self.learning_rate, identity=identity)
        reconstruct = network(fitted.net, decoder.size, budget.device)
        return Prepared(reconstruct, fitted.curve, fitted.flattened, params, fitted.images_seen)

    def _decoder(self, pairs: Pairs, size: tuple[int, int], seed: int) -> Decoder:
        _, observed = pairs.examples(torch.Generator().manual_seed(seed))
        std, mean = torch.std_mean(observed, dim=(0, 2, 3))
        # A copy: what is moved to another device here must not move under other attackers.
        estimate = copy.deepcopy(solve(pairs, seed=seed)[0]) if self.corrects else None
        channels = observed.shape[1] + (3 if self.corrects else 0)
        return Decoder(self.build(channels), mean, std, size, estimate)


PAPER = LearnedDecoder("paper's decoder", PaperNet, corrects=False, learning_rate=1e-2)
RESIDUAL = LearnedDecoder("residual decoder", ResidualNet)
UNET = LearnedDecoder("U-Net with attention", UNet)
RESIDUAL_SSIM = LearnedDecoder("residual decoder, L1+SSIM", ResidualNet, Structure)
RESIDUAL_GAN = LearnedDecoder("residual decoder, GAN", ResidualNet, Adversarial)
