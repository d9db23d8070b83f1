"""An attack without a single pair: payloads are turned into images that pass for public ones.

A linear map gives the payloads the mean and covariance of public images; a decoder that starts there is trained against
a discriminator, while a second network must recover the payload from the reconstructed image.

Source: the linear map: optimal transport between Gaussians, Peyré and Cuturi 2019, remark 2.31; the training: Zhu et
al. 2017 (CycleGAN), section 3, with the hinge loss of Lim and Ye 2017; the discriminator of Isola et al. 2017
(PatchGAN), section 3.2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.decoders import Decoder, network
from sfumato.lab.attacks.linear import MAX_INPUTS, LinearEstimate
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.models import autocast, reverse_gradient
from sfumato.lab.models.decoders import ResidualNet, patch_discriminator

BATCH, _LEAST_BATCH = 64, 16
"""Images beyond 64 x 64 pixels come in smaller batches, which bounds memory."""
_COMPONENTS = 200
_STATISTICS = 5_000
_DIRECTIONS = 32
_ADVERSARIAL, _CYCLE, _MOMENTS = 0.1, 1.0, 10.0
_LEARNING_RATE = 2e-4
"""Isola et al. 2017, section 3.3."""


class Unpaired(Attacker):
    """A decoder trained against a discriminator, with a way back to the payload."""

    name = "discriminator without pairs"
    threats = frozenset({Threat.NO_PAIRS})

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        payloads, public = knowledge.intercepted, knowledge.public
        if payloads is None or public is None or min(len(payloads), len(public)) < 5:
            raise AuditError(f"{self.name} needs at least 5 intercepted payloads and 5 public images")
        start = transport(payloads[:_STATISTICS], public[:_STATISTICS])
        std, mean = torch.std_mean(payloads[:_STATISTICS], dim=(0, 2, 3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(budget.seed)
            net = ResidualNet(payloads.shape[1] + 3, width=64, depth=3)
            decoder = Decoder(net, mean, std, (knowledge.height, knowledge.width), start)
            game = _Game(decoder, payloads.shape[1])
            _train(game, payloads, public, budget)
        params = sum(p.numel() for p in net.parameters())
        seen = budget.images // (batch := _batch(decoder.size)) * batch
        return Prepared(network(decoder, decoder.size, budget.device), params=params, images_seen=seen)


class _Game(nn.Module):
    """Decoder, discriminator and the way back to the standardised payload."""

    def __init__(self, decoder: Decoder, channels: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.back = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, channels, 1),
        )
        self.judge = patch_discriminator()

    def loss(self, observed: Tensor, public: Tensor) -> Tensor:
        """Payloads (B, C, H', W') and public images (B, 3, H, W) in [0, 1] -> scalar, lower for both players."""
        reconstructed = self.decoder(observed)
        payload = (observed - self.decoder.mean) / self.decoder.std
        again = F.interpolate(
            self.back(reconstructed).float(), size=payload.shape[-2:], mode="bilinear", antialias=True
        )
        cycle = F.mse_loss(again, payload)
        moments = F.mse_loss(reconstructed.mean(dim=0), public.mean(dim=0)) + F.mse_loss(
            reconstructed.std(dim=0), public.std(dim=0)
        )
        judged = self.judge(reverse_gradient(reconstructed, 1.0))
        adversarial = F.relu(1 + judged).mean() + F.relu(1 - self.judge(public)).mean()
        return _ADVERSARIAL * adversarial + _CYCLE * cycle + _MOMENTS * moments


def _train(game: _Game, payloads: Tensor, public: Tensor, budget: AttackBudget) -> None:
    game.to(budget.device).train()
    source = torch.Generator().manual_seed(budget.seed)
    optimizer = torch.optim.Adam(game.parameters(), lr=_LEARNING_RATE, betas=(0.5, 0.999))
    batch = _batch(game.decoder.size)
    steps = budget.images // batch
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / steps)
        observed = payloads[torch.randint(len(payloads), (batch,), generator=source)]
        images = public[torch.randint(len(public), (batch,), generator=source)].float() / 255
        with autocast(budget.device):
            loss = game.loss(observed.to(budget.device), images.to(budget.device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(game.parameters(), 1.0)
        optimizer.step()
        if not torch.isfinite(loss):
            raise AuditError(f"the attacker's loss is {float(loss)} at step {step}: the payload is not finite")
        budget.report(step + 1, steps)
    game.eval()


def _batch(size: tuple[int, int]) -> int:
    return max(_LEAST_BATCH, min(BATCH, BATCH * 64**2 // (size[0] * size[1])))


@torch.no_grad()
def transport(payloads: Tensor, public: Tensor) -> LinearEstimate:
    """Return the linear map that gives payloads the mean and the leading covariance of public images.

    Mean and covariance leave open which way each direction points: three maps are made (optimal transport, its mirror
    image about the mean, and principal components joined by rank with signs by their skewness), and the one kept is
    that whose images are nearest to public ones by sliced Wasserstein distance. The first two need a payload of as
    many numbers as an image has.

    Args:
        payloads: (M, C, H', W') float32.
        public: (N, 3, H, W) uint8.

    Returns:
        The map from payloads to images.

    Source: Bonneel et al. 2015, section 3, for the distance.
    """
    images = public.float().flatten(1) / 255
    inputs = payloads.flatten(1)[:, :MAX_INPUTS]
    offset, base = inputs.mean(dim=0), images.mean(dim=0)
    rank = min(_COMPONENTS, len(inputs) - 1, len(images) - 1, inputs.shape[1], images.shape[1])
    x, x_std = _components(inputs - offset, rank)
    y, y_std = _components(images - base, rank)
    whitened, coloured = x / x_std, (y * y_std).T
    maps = []
    if inputs.shape[1] == images.shape[1]:
        # Of all rotations between the whitened and the coloured the one that moves the numbers least.
        u, _, v = torch.linalg.svd((x * x_std).T @ (y * y_std))
        straight = whitened @ u @ v @ coloured
        maps += [straight, -straight]
    signs = _skewness((inputs - offset) @ whitened) * _skewness((images - base) @ y)
    maps.append((whitened * torch.where(signs < 0, -1.0, 1.0)) @ coloured)
    best = min(maps, key=lambda factor: _distance((inputs - offset) @ factor, images - base, y))
    return LinearEstimate(offset, [best.contiguous()], base.reshape(public.shape[1:]))


def _components(centred: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading principal directions (D, rank) and the standard deviation along each (rank,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, directions = torch.svd_lowrank(centred, q=rank)
    std = singular / max(1, len(centred) - 1) ** 0.5
    return directions, std.clamp_min(1e-3 * float(std[0]) + 1e-9)


def _skewness(x: Tensor) -> Tensor:
    """Of each column, up to a positive factor: (N, D) -> (D,)."""
    return (x / x.std(dim=0).clamp_min(1e-9)).pow(3).mean(dim=0)


def _distance(reconstructed: Tensor, images: Tensor, directions: Tensor) -> float:
    """Mean Wasserstein distance along leading directions of public images, each in its standard deviations."""
    count = min(len(reconstructed), len(images), 2_000)
    axes = directions[:, :_DIRECTIONS]
    along = [(x[:count] @ axes).sort(dim=0).values for x in (reconstructed, images)]
    scale = along[1].std(dim=0).clamp_min(1e-9)
    return float(((along[0] - along[1]) / scale).abs().mean())
