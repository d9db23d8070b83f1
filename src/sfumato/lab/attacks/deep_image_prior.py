"""Inversion by optimisation; the image is the output of an untrained network for noise.

Each image has a network of its own, which fits natural images sooner than anything else that explains the payload.

Source: Ulyanov et al. 2018, section 2; a smaller hourglass than theirs, for small images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.attacks.total_variation import Inversion, inversion, minimise

_LEARNING_RATE = 0.01
_BATCH = 32
_NOISE, _WIDTH, _FINE = 8, 32, 16


class Hourglasses(nn.Module):
    """As many small hourglass networks as images, run together as groups of channels.

    Each convolution but the last is followed by a norm over the image, a channel alone, and a leaky ReLU.

    Args:
        start: (count, 3, H, W) float32 in [0, 1], the networks' outputs before they are trained.
    """

    noise: Tensor
    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.count = count = len(start)
        self.register_buffer("noise", torch.randn(1, count * _NOISE, *start.shape[-2:]))
        self.register_buffer("start", torch.logit(start, eps=0.02))
        self.down = self._layer(_NOISE, _WIDTH, stride=2)
        self.coarse = nn.Sequential(self._layer(_WIDTH, _WIDTH, stride=2), self._layer(_WIDTH, _WIDTH))
        self.middle = self._layer(_WIDTH, _WIDTH)
        self.fine = self._layer(_WIDTH, _FINE)
        self.across = self._layer(_NOISE, _FINE, kernel=1)
        self.head = nn.Conv2d(count * _FINE, count * 3, 1, groups=count)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """-> (count, 3, H, W) in [0, 1]."""
        half = self.down(self.noise)
        x = self.middle(half + F.interpolate(self.coarse(half), size=half.shape[-2:], mode="bilinear"))
        x = self.fine(F.interpolate(x, size=self.noise.shape[-2:], mode="bilinear")) + self.across(self.noise)
        return torch.sigmoid(self.start + self.head(x).reshape(self.start.shape))

    def _layer(self, inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        into, out = self.count * inside, self.count * outside
        conv = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, groups=self.count)
        return nn.Sequential(conv, nn.GroupNorm(out, out), nn.LeakyReLU(0.2))


class DeepImagePrior(Attacker):
    """Adam on the weights of an untrained network for each image; the number of steps keeps it from fitting noise.

    `argmin_w |f(net_w(noise)) - observed|^2 / variance(observed)`
    """

    name = "deep image prior"
    threats = frozenset({Threat.WHITE_BOX, Threat.CLOUD})
    learns = False
    needs_gradients = True
    test_images = 64

    def prepare(self, knowledge: Knowledge, budget: AttackBudget) -> Prepared:
        """See `Attacker`."""
        known = inversion(knowledge, self.name, budget.seed)

        def reconstruct(observed: Tensor) -> Tensor:
            parts, done = [], 0
            for part in torch.split(observed, _BATCH):
                parts.append(_fit(known, part, budget))
                done += len(part)
                budget.report(done, len(observed))
            return torch.cat(parts)

        params = sum(p.numel() for p in Hourglasses(known.images[:1]).parameters())
        return Prepared(reconstruct, params=params)


@torch.no_grad()
def _fit(known: Inversion, observed: Tensor, budget: AttackBudget) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        nets = Hourglasses(known.start(observed))

        def loss() -> Tensor:
            return known.misfit(nets(), observed).sum()

        for _ in minimise(list(nets.parameters()), loss, learning_rate=_LEARNING_RATE, steps=budget.steps):
            pass
    out: Tensor = nets()
    return out
