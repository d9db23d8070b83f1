"""The one training loop: order, steps, looks at the test images, checkpoints, interrupts."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from sfumato.artifacts.signals import interruptible
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.data import Augmentation, ImageSet, augment
from sfumato.lab.models.checkpoint import load_checkpoint, same_identity, save_checkpoint
from sfumato.lab.training.progress import Progress

CHECKPOINT_EVERY_S = 60.0
LOG_EVERY_S = 2.0
_PARTS = frozenset({"identity", "task", "optimizer", "scheduler", "epoch", "step", "seconds"})


class Images(Protocol):
    """Training images, in memory (`ImageSet`) or streamed (`Stream`)."""

    def __len__(self) -> int:
        """How many an epoch has."""

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch's batches from `first` on; see `ImageSet.batches`."""


@dataclass(frozen=True)
class Schedule:
    """When the run ends and what a step is.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step over all processes.
        seed: of order and augmentation.
        validate_every: epochs between looks at the test images.
        channels_last: keep activations in NHWC order.
        compile: fuse operations with `torch.compile`.
    """

    epochs: int
    batch_size: int
    seed: int
    validate_every: int = 1
    channels_last: bool = True
    compile: bool = False


@dataclass
class _State:
    """Where the run stands; `step` counts steps within `epoch`."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """What came of a training.

    Attributes:
        figures: of the last look at the test images.
        history: "epoch", how many were done, and the figures of each look, the last one included.
        seconds: of all training steps, over all parts of an interrupted run.
    """

    figures: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


def fit(
    fabric: Fabric,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    train: Images,
    test: ImageSet,
    augmentation: Augmentation,
    schedule: Schedule,
    checkpoint: Path,
    identity: str,
    resume: bool = False,
    panel: Callable[[Tensor], Tensor] | None = None,
    before_epoch: Callable[[int], Iterable[nn.Parameter]] = lambda epoch: (),
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> Fitted:
    """Trains a task to the end of its schedule.

    The order of the images, their augmentation and what a task draws at random (torch's own generator is seeded at
    each step) depend on seed, epoch, step and process alone, so that a resumed run continues to the same weights as
    one that was never interrupted.

    Args:
        fabric: launched; decides on devices, precision and processes.
        task: forward(images (N, 3, H, W) float in [0, 1], labels (N,) int64) -> scalars with "loss".
        optimizer: over the task's trained parameters.
        scheduler: stepped after every optimiser step.
        train: the training images.
        test: the images looked at between epochs.
        augmentation: of training batches.
        schedule: see `Schedule`.
        checkpoint: the file that the state is kept in.
        identity: the recipe as text; a checkpoint of another recipe is refused.
        resume: go on from `checkpoint`.
        panel: images (N, 3, H, W) -> rows of images (R, N, 3, H, W) for the log.
        before_epoch: is told how many epochs are done, in every process; may set parameters anew, and gives those that
            it did: what the optimiser knows of them is forgotten.
        after_epoch: is told how many epochs are done, in the first process alone.

    Returns:
        See `Fitted`.

    Raises:
        TrainingError: too few images, a loss that is not finite, or a checkpoint that cannot be written or read.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    steps = len(train) // schedule.batch_size
    if steps < 1 or schedule.batch_size % fabric.world_size:
        raise TrainingError(
            f"batch_size {schedule.batch_size} does not fit {len(train)} training images "
            f"on {fabric.world_size} processes: it must not exceed the first and be a multiple of the second"
        )
    if schedule.channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if schedule.compile:
        task.compile()  # in place: the weights keep their names
    raw = task
    module, wrapped = fabric.setup(task, optimizer)
    state = _State()
    if resume:
        _restore(load_checkpoint(checkpoint, _PARTS), identity, raw, optimizer, scheduler, state)
    if isinstance(train, ImageSet):
        train = replace(train, images=train.images.to(fabric.device), labels=train.labels.to(fabric.device))
    figures: dict[str, float] = {}

    def save() -> None:
        if fabric.is_global_zero:
            if not all(bool(torch.isfinite(p).all()) for p in raw.parameters()):
                raise TrainingError(f"weights are no longer finite; the checkpoint of before is kept in {checkpoint}")
            save_checkpoint(checkpoint, _snapshot(identity, raw, optimizer, scheduler, state))
        fabric.barrier()

    with interruptible() as interrupted, Progress(fabric, schedule.epochs, steps, schedule.batch_size) as progress:
        last_saved = last_logged = time.monotonic()
        while state.epoch < schedule.epochs:
            module.train()
            if state.step == 0:  # else it is in the checkpoint already
                for parameter in before_epoch(state.epoch):
                    optimizer.state.pop(parameter, None)
            batches = _batches(train, schedule, state, fabric)
            while state.step < steps:
                started = time.monotonic()
                x, labels = next(batches)
                source = _generator(schedule.seed, "augment", state.epoch, state.step, fabric.global_rank)
                x = augment(x.to(fabric.device), augmentation, source)
                torch.manual_seed(_seed(schedule.seed, "task", state.epoch, state.step, fabric.global_rank))
                losses = module(_as_input(x, schedule.channels_last), labels.to(fabric.device))
                if fabric.device.type == "cpu":  # elsewhere it would wait for the device at each step
                    _check_finite(losses["loss"], state, checkpoint)
                wrapped.zero_grad()
                fabric.backward(losses["loss"])
                wrapped.step()
                scheduler.step()
                state.step += 1
                now = time.monotonic()
                state.seconds += now - started
                progress.step(state.epoch, state.step)
                if now - last_logged > LOG_EVERY_S or state.step == steps:
                    last_logged = now
                    _check_finite(losses["loss"], state, checkpoint)
                    values = {name: float(value.detach()) for name, value in losses.items()}
                    progress.log(values, float(scheduler.get_last_lr()[0]), state.epoch * steps + state.step)
                if _any_process(fabric, bool(interrupted)):
                    save()
                    raise Interrupted(f"interrupted; saved in {checkpoint}, go on with --resume")
                if _any_process(fabric, now - last_saved > CHECKPOINT_EVERY_S):
                    save()
                    last_saved = now
            state.epoch, state.step = state.epoch + 1, 0
            if state.epoch % schedule.validate_every == 0 or state.epoch == schedule.epochs:
                figures = look(fabric, module, test, schedule.batch_size, channels_last=schedule.channels_last)
                images = panel(_as_input(test.images[:8].to(fabric.device), schedule.channels_last)) if panel else None
                progress.look(figures, state.epoch, images)
                state.history.append({"epoch": state.epoch, **figures})
            if fabric.is_global_zero:
                after_epoch(state.epoch)
            save()
            last_saved = time.monotonic()
    if not figures:  # resumed after the last epoch
        figures = look(fabric, module, test, schedule.batch_size, channels_last=schedule.channels_last)
    return Fitted(figures, state.history, state.seconds)


def _check_finite(loss: Tensor, state: _State, checkpoint: Path) -> None:
    if not math.isfinite(float(loss.detach())):
        kept = f"; the last good state is kept in {checkpoint}" if checkpoint.exists() else ""
        raise TrainingError(
            f"the loss is {float(loss.detach())} at epoch {state.epoch + 1}, step {state.step + 1}{kept}; lower the "
            "learning rate and start anew, or resume if the machine is to blame"
        )


@torch.no_grad()
def look(
    fabric: Fabric, module: nn.Module, images: ImageSet, batch_size: int, *, channels_last: bool
) -> dict[str, float]:
    """The task's figures in evaluation mode, averaged over all images and processes.

    Args:
        fabric: as in `fit`.
        module: the task as `fabric.setup` returned it.
        images: the images to look at; not augmented.
        batch_size: images at a time.
        channels_last: keep activations in NHWC order.
    """
    module.eval()
    means: dict[str, MeanMetric] = {}
    mine = torch.arange(len(images))[fabric.global_rank :: fabric.world_size]
    for batch in torch.split(mine, batch_size):
        x = _as_input(images.images[batch].to(fabric.device), channels_last)
        for name, value in module(x, images.labels[batch].to(fabric.device)).items():
            means.setdefault(name, MeanMetric().to(fabric.device)).update(value, weight=len(batch))
    return {name: float(mean.compute()) for name, mean in means.items()}


def _batches(train: Images, schedule: Schedule, state: _State, fabric: Fabric) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches from where the run stands."""
    place = {"first": state.step, "rank": fabric.global_rank, "world_size": fabric.world_size}
    return train.batches(_seed(schedule.seed, "order", state.epoch), schedule.batch_size, **place)


def _as_input(images: Tensor, channels_last: bool) -> Tensor:
    x = images.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))


def _seed(*parts: object) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is set in any process: all must save, or stop, at the same step."""
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return float(total) > 0  # type: ignore[arg-type]


def _snapshot(
    identity: str, task: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, state: _State
) -> dict[str, Any]:
    return {
        "identity": identity,
        "task": task.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.seconds,
        "history": state.history,
    }


def _restore(
    saved: dict[str, Any],
    identity: str,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    state: _State,
) -> None:
    if not same_identity(saved["identity"], identity):
        raise TrainingError(
            "the checkpoint belongs to another recipe; resume with the same one, or start anew without --resume"
        )
    try:
        task.load_state_dict(saved["task"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError("the checkpoint does not fit these networks; start anew without --resume") from error
    state.epoch, state.step, state.seconds = saved["epoch"], saved["step"], saved["seconds"]
    state.history = saved.get("history", [])  # checkpoints from before it was kept have none
