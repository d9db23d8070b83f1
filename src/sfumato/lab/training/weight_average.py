"""An exponential moving average of the weights, which predicts better than the last ones do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of all that a training changes: trained parameters, and the statistics of trained batch norms.

    Step t keeps the share `min(decay, (1 + t) / (10 + t))` of the former average, so that the initial weights are soon
    forgotten.

    Source: Polyak and Juditsky 1992 (averages of iterates); with that share, TensorFlow's `ExponentialMovingAverage`.

    Args:
        task: its present weights are the first average.
        decay: in (0, 1).
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = dict(_trained(task))
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the present weights into the average, after so many steps, counted from 1."""
        kept = min(self._decay, (1 + step) / (10 + step))
        take = get_ema_multi_avg_fn(kept)  # type: ignore[no-untyped-call]
        take(list(self._average.values()), list(self._live.values()), step)

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange weights and average, in place."""
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the task use the average inside the block."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by the names of the weights."""
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with an average that was returned by `state_dict`.

        Raises:
            ValueError: it is of other weights.
        """
        if state.keys() != self._average.keys():
            raise ValueError("the average is of other weights")
        for name, value in state.items():
            self._average[name].copy_(value)


def _trained(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in task.named_parameters() if value.requires_grad)
    for name, part in task.named_modules():
        if isinstance(part, _BatchNorm) and part.weight is not None and part.weight.requires_grad:
            yield from ((f"{name}.{key}", value) for key, value in part.named_buffers() if value.is_floating_point())
