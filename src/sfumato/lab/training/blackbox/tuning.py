"""Score-only gradients: tune a sketch's decoder by the endpoint's predictions on decoded images alone.

There is one decoded image per code, and the prediction on it is the prediction for every image with that code. So the
images' own variance, which stochastic gradients usually have, is absent; only that of the tried directions remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR

from sfumato.errors import QueryBudgetExhausted
from sfumato.lab.data import Augmentation, ImageSet
from sfumato.lab.models import Sketcher
from sfumato.lab.models.checkpoint import identify
from sfumato.lab.training.blackbox.oracle import Oracle
from sfumato.lab.training.engine import Hooks, Options, fit
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.tasks import Losses
from sfumato.progress import Progress, silent

_STEP = 0.05
"""Finite difference step: the root mean square over a decoded image's numbers."""
_PRIOR = 0.5
"""The share of the surrogate's gradient in a direction, in the square."""
_COARSE = 8
"""Side of the random part of a direction, which is smooth: classifiers respond mostly to coarse structure."""
_LEARNING_RATE = 1e-3
_COPIES, _NOISE = 4, 0.1
"""Of an endpoint that returns labels alone: noisy copies of a decoded image that are sent, and the noise in them."""
_MOST_CODES = 64
"""Codes that a step is taken for: those with the largest loss."""


def score_gradient(loss: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, *, step: float) -> Tensor:
    """Return the gradient's part in given directions, from values alone.

    `mean over u of (L(x + s u) - L(x - s u)) / (2 s) u`, which for directions of unit covariance is the gradient of a
    smoothed L on average.

    Source: Nesterov and Spokoiny 2017, equation 30, in its two-sided form.

    The loss is (N, ...) -> (N,) float; x and the gradient are (N, ...) float, directions (M, N, ...); s is above 0.
    """
    total = torch.zeros_like(x)
    for u in directions:
        slope = (loss(x + step * u) - loss(x - step * u)) / (2 * step)
        total += slope.view(-1, *[1] * (x.ndim - 1)) * u
    return total / len(directions)


def guided_directions(prior: Tensor, *, share: float, coarse: int, generator: torch.Generator) -> Tensor:
    """Return a random direction for each decoded image that leans towards a surrogate's gradient.

    Source: Cheng et al. 2019, "Improving black-box adversarial attacks with a transfer-based prior", equation 8, with
    a fixed share in place of their estimate of the best one.

    Args:
        prior: (N, C, H, W) float, the surrogate's gradients; where one is 0, the direction is purely random.
        share: of the prior in the direction, in the square, in [0, 1].
        coarse: side of the random part before it is enlarged to the image's size.
        generator: on the CPU.

    Returns:
        (N, C, H, W) float of root mean square 1 for each image.
    """
    unit, known = _smooth(prior.shape, coarse, generator), _unit(prior)
    across = _unit(unit - (unit * known).mean(dim=(1, 2, 3), keepdim=True) * known)
    has_prior = (known.abs().amax(dim=(1, 2, 3), keepdim=True) > 0).float()
    share_here = share * has_prior
    return _unit(share_here.sqrt() * known + (1 - share_here).sqrt() * across)


def _smooth(shape: torch.Size, side: int, generator: torch.Generator) -> Tensor:
    """Return coarse noise of root mean square 1 for each image."""
    noise = torch.randn(*shape[:2], side, side, generator=generator)
    return _unit(F.interpolate(noise, size=shape[2:], mode="bilinear", align_corners=False))


def _unit(x: Tensor) -> Tensor:
    size = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return torch.where(size > 0, x / size.clamp_min(1e-12), torch.zeros_like(x))


class TuningTask(nn.Module):
    """Change the decoded images until the endpoint's predictions are the device's; keep the best decoder.

    In training mode a forward pass asks the endpoint about variations of the codes with the largest loss, and its
    "loss" has their score-only gradient. In evaluation mode it asks about all codes.

    Args:
        sketcher: trained on surrogates; its decoder is changed in place, its encoder is not.
        oracle: the endpoint.
        surrogate: images in [0, 1] to logits, for the directions.
        weights: (K,) float, the share of the images with each code; sum 1.
        seed: of the directions.

    Attributes:
        best: the decoder with the highest agreement so far.
        agreement: of the best one; -1 before the first validation.
    """

    agreement: Tensor
    losses: Tensor
    random: Tensor
    begun: Tensor
    weights: Tensor

    def __init__(self, sketcher: Sketcher, oracle: Oracle, surrogate: nn.Module, weights: Tensor, seed: int) -> None:
        super().__init__()
        self.decoder = nn.ModuleList([sketcher.from_code, sketcher.draw])
        self.best = deepcopy(self.decoder).requires_grad_(False)
        self._frozen = sketcher, surrogate.requires_grad_(False)  # in a tuple: checkpoints have no need of them
        self._oracle = oracle
        self.copies = 1 if oracle.answers == "scores" else _COPIES
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("agreement", torch.tensor(-1.0, dtype=torch.float64))
        self.register_buffer("losses", torch.zeros(len(weights)))
        self.register_buffer("random", torch.Generator().manual_seed(seed).get_state())
        self.register_buffer("begun", torch.tensor(oracle.spent))

    def train(self, mode: bool = True) -> TuningTask:
        """Set whether a forward pass is a step or a validation; all networks stay in evaluation mode."""
        self.training = mode
        for net in self._frozen:
            net.eval()
        return self

    def forward(self, codes: Tensor, wanted: Tensor) -> Losses:
        """Codes (K, D, 1, 1) float, each once, and the device's predictions (K,) int64 -> losses."""
        codes = codes.flatten(1)
        return self._step(codes, wanted) if self.training else self.validate(codes, wanted)

    @torch.no_grad()
    def validate(self, codes: Tensor, wanted: Tensor) -> Losses:
        """Ask about all codes, (K, D) float: the next step needs their losses, and the best decoder is kept."""
        log_probabilities = self._oracle(self._frozen[0].decode(codes))
        self.losses.copy_(F.nll_loss(log_probabilities, wanted, reduction="none"))
        agreement = self.weights[log_probabilities.argmax(dim=1) == wanted].sum()
        if float(agreement) > float(self.agreement):
            self.agreement.copy_(agreement)
            self.best.load_state_dict(self.decoder.state_dict())
        return {"loss": (self.losses * self.weights).sum(), "agreement": agreement}

    def _step(self, codes: Tensor, wanted: Tensor) -> Losses:
        worst = (self.losses * self.weights).argsort(descending=True)[:_MOST_CODES]
        wanted, generator = wanted[worst], torch.Generator()
        generator.set_state(self.random)
        sketcher, surrogate = self._frozen
        decoded = sketcher.decode(codes[worst])
        leaf = decoded.detach().requires_grad_()
        (prior,) = torch.autograd.grad(F.cross_entropy(surrogate(leaf), wanted, reduction="sum"), leaf)
        u = guided_directions(prior, share=_PRIOR, coarse=_COARSE, generator=generator)
        loss = partial(self._loss, wanted=wanted, generator=generator)
        gradient = score_gradient(loss, leaf.detach(), u[None], step=_STEP)
        self.random.copy_(generator.get_state())
        return {"loss": (decoded * gradient * self.weights[worst].view(-1, 1, 1, 1)).sum()}

    def _loss(self, images: Tensor, *, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss per image; a label has no slope, but its rate under noise has (Ilyas et al. 2018, 2.4)."""
        if self.copies > 1:
            images, wanted = images.repeat(self.copies, 1, 1, 1), wanted.repeat(self.copies)
            images = images + _NOISE * _smooth(images.shape, _COARSE, generator)
        each = F.nll_loss(self._oracle(images.clamp(0, 1)), wanted, reduction="none")
        return each.view(self.copies, -1).mean(dim=0)


class _Codes(ImageSet):
    """All codes as the one batch of each step; to the engine they are images of one pixel."""

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield them in order, as often as the set has copies of them."""
        del seed, rank, world_size
        images, labels = (torch.split(part, batch_size) for part in (self.images, self.labels))
        yield from list(zip(images, labels, strict=True))[first:]


def tune(
    sketcher: Sketcher,
    oracle: Oracle,
    surrogate: nn.Module,
    codes: Tensor,
    weights: Tensor,
    *,
    queries: int,
    seed: int,
    checkpoint: Path,
    progress: Progress = silent,
) -> dict[str, float | int]:
    """Change the decoded images until the endpoint's predictions are the device's; keep the best decoder.

    The codes are (K, classes + learned bits) float32, as `Sketcher.encode` returns them, each once. At most so many
    `queries` are sent. The state is kept in the file `checkpoint`, and resumed from it if it is there. For the other
    arguments see `TuningTask`.

    Returns:
        "agreement_before_tuning" and "agreement_after_tuning", the share of the images whose decoded image the endpoint
        classifies as the device does, and "queries_tuning", that it took over all parts of an interrupted run.

    Raises:
        QueryBudgetExhausted: the oracle's own budget does not allow one query per code.
        TrainingError, Interrupted: as `fit`.
    """
    identity = identify(codes, weights, queries, seed, *(value for _, value in sorted(sketcher.state_dict().items())))
    task = TuningTask(sketcher, oracle, surrogate, weights, seed).eval()
    wanted = codes[:, : sketcher.classes].argmax(dim=1)
    before = float(task.validate(codes, wanted)["agreement"])
    # Every step asks about its directions and about all codes; without room for one at its largest, none is made.
    step = len(codes) + 2 * task.copies * min(len(codes), _MOST_CODES)
    room = queries - 2 * len(codes) - 2 * task.copies * _MOST_CODES
    if room >= 0:
        # Unchecked, as a single code is a batch of one.
        plan = TrainingRecipe.model_construct(epochs=1, batch_size=len(codes), seed=seed, channels_last=False)
        every, steps = ImageSet(codes[:, :, None, None], wanted, (), "codes", ""), 1 + room // step
        optimizer = torch.optim.Adam(task.decoder.parameters(), lr=_LEARNING_RATE)
        with suppress(QueryBudgetExhausted):  # the best decoder so far is kept
            fit(
                Fabric(accelerator="cpu", devices=1),
                task,
                plan,
                optimizers=(optimizer, ConstantLR(optimizer, factor=1.0)),
                train=_Codes(every.images.repeat(steps, 1, 1, 1), wanted.repeat(steps), (), "codes", ""),
                test=every,
                augmentation=Augmentation(flip=False),
                checkpoint=checkpoint,
                identity=identity,
                options=Options(resume=checkpoint.is_file(), progress=progress),
                hooks=Hooks(until=lambda: float(task.validate(codes, wanted)["agreement"]) >= 1 - 1e-9),
            )
    task.decoder.load_state_dict(task.best.state_dict())
    return {
        "queries_tuning": oracle.spent - int(task.begun),
        "agreement_before_tuning": before,
        "agreement_after_tuning": float(task.agreement),
    }
