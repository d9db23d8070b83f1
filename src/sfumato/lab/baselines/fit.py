"""The training loop of all baselines that learn by gradients, and the encoder that three of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from sfumato.artifacts.signals import interruptible
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.baselines.method import STAGE, Method, Training
from sfumato.lab.data import Augmentation, augment
from sfumato.lab.models import Obfuscator

ENCODER_RATE = 2e-3
"""The highest learning rate of an encoder."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Images (B, 3, H, W) float32 in [0, 1] and labels (B,) int64 -> scalar."""


def learn(
    training: Training,
    parameters: Iterable[nn.Parameter],
    loss: Loss,
    *,
    seed: int,
    learning_rate: float,
    share: float = 1.0,
) -> None:
    """Train with Adam and one cycle of the learning rate, on mirrored images.

    Source: Kingma and Ba 2015; Smith and Topin 2018.

    Args:
        training: images, epochs and progress.
        parameters: are learned.
        loss: see `Loss`.
        seed: of the order, the mirroring and the loss's random numbers.
        learning_rate: the highest one.
        share: of the epochs.

    Raises:
        TrainingError: fewer than 2 images, no epochs, or a loss that is not finite.
        Interrupted: Ctrl-C or SIGTERM.
    """
    count = len(training.labels)
    batch_size = min(training.batch_size, count)
    if batch_size < 2 or not 0 < training.epochs < math.inf:
        raise TrainingError(
            f"training needs at least 2 images a step and epochs above 0, got {batch_size} and {training.epochs}"
        )
    total = max(1, round(training.epochs * share * count / batch_size))
    learned = list(parameters)
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    # The schedule divides by zero in a cycle of a few steps.
    scheduler = OneCycleLR(optimizer, learning_rate, total_steps=max(total, 9) + 1, pct_start=0.2)
    source = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    with interruptible() as interrupted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, total + 1):
            if len(order) < batch_size:
                order = torch.randperm(count, generator=source)
            batch, order = order[:batch_size], order[batch_size:]
            images = augment(training.images[batch], Augmentation(flip=True), source).float().div_(255)
            value = loss(images.contiguous(memory_format=torch.channels_last), training.labels[batch])
            if not torch.isfinite(value):
                raise TrainingError(f"the loss is {value.item()} at step {step} of {total}; lower the strength")
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learned, 5.0)
            optimizer.step()
            scheduler.step()
            training.progress(STAGE, step, total, f"loss {value.item():.4f}")
            if interrupted:
                raise Interrupted("interrupted; nothing was written")


class Encoded(Method):
    """A method whose obfuscator is a network: the project's own architecture, so that its cost is the same.

    A subclass has the training loss in `objective`.

    Raises:
        TrainingError: sides that are no multiples of 8.
    """

    learns = True
    iterates = True

    def _set_up(self) -> None:
        multiple = Obfuscator.size_multiple
        if self.height % multiple or self.width % multiple:
            raise TrainingError(
                f"the encoder takes sides that are multiples of {multiple}, got {self.height}x{self.width}"
            )
        self.weight = self._positive()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.encoder = Obfuscator().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        out: Tensor = self.encoder(images)
        return out

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """Return the loss and the further networks that are trained with the encoder."""
        raise NotImplementedError

    def fit(self, training: Training) -> nn.Module:
        """See `Method`."""
        loss, others = self.objective(training)
        self.train()
        parameters = [parameter for net in (self, *others) for parameter in net.parameters()]
        learn(training, parameters, loss, seed=self.seed, learning_rate=ENCODER_RATE)
        self.eval()
        return training.classifier
