"""Ctrl-C in the middle of a training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sfumato.errors import Interrupted
from sfumato.lab.training import batches


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Interrupt the block's training in the step of that number, counted from 1, and expect that it stops there."""
    steps: list[int] = []
    plain = batches.augment

    def interrupting(*given: Any) -> Any:
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(batches, "augment", interrupting)
        yield
    assert len(steps) == step
