"""The one training loop: order, steps, validation, checkpoints, interrupts."""

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
from sfumato.lab.training.progress import Report
from sfumato.progress import Progress, Say, mute, silent

CHECKPOINT_EVERY_S = 60.0
LOG_EVERY_S = 2.0
_PARTS = frozenset({"identity", "task", "optimizer", "scheduler", "epoch", "step", "seconds"})


class Images(Protocol):
    """Training images, in memory (`ImageSet`) or streamed (`Stream`)."""

    def __len__(self) -> int:
        """Return how many an epoch has."""

    def batches(
        self, seed: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch's batches from `first` on; see `ImageSet.batches`."""


@dataclass(frozen=True)
class Schedule:
    """When the run ends and what a step is.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step over all processes.
        seed: of order and augmentation.
        validate_every: epochs between validations; the last epoch always ends with one.
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
    """The result of a training.

    Attributes:
        figures: of the last validation.
        history: "epoch", how many were done, and the figures of each validation, the last one included.
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
    until: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Say = mute,
) -> Fitted:
    """Train a task to the end of its schedule.

    The order of the images, their augmentation and what a task samples (torch's own generator is seeded at each step)
    depend on seed, epoch, step and process alone, so that a resumed run ends with the weights of one that was never
    interrupted.

    Args:
        fabric: launched; decides on devices, precision and processes.
        task: forward(images (N, 3, H, W) float in [0, 1], labels (N,) int64) -> scalars with "loss".
        optimizer: over the task's trained parameters.
        scheduler: stepped after every optimiser step.
        train: the training images; floating-point ones are handed to the task as they are.
        test: the images of the validations.
        augmentation: of training batches.
        schedule: see `Schedule`.
        checkpoint: the file that the state is kept in.
        identity: the recipe as text; a checkpoint of another recipe is refused.
        resume: continue from `checkpoint`.
        panel: images (N, 3, H, W) -> rows of images (R, N, 3, H, W) for the log.
        before_epoch: is given how many epochs are done, in every process; may reset parameters, and returns those: the
            optimiser's state of them is dropped.
        after_epoch: is given how many epochs are done, in the first process alone.
        until: is asked before each step; True ends the run early.
        progress: is told of each step; see `Report`.
        say: is given a line after each validation.

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
    module, wrapped = fabric.setup(task, optimizer)
    saved = _Saved(checkpoint, identity, task, optimizer, scheduler)
    state = saved.load() if resume else _State()
    if isinstance(train, ImageSet):
        train = replace(train, images=train.images.to(fabric.device), labels=train.labels.to(fabric.device))
    report = Report(fabric, schedule.epochs, steps, schedule.batch_size, progress, say)
    loop = _Loop(fabric, module, wrapped, scheduler, schedule, steps, saved, state, report)

    figures: dict[str, float] = {}
    with interruptible() as interrupted:
        while state.epoch < schedule.epochs:
            if state.step == 0:  # else it is in the checkpoint already
                for parameter in before_epoch(state.epoch):
                    optimizer.state.pop(parameter, None)
            if not loop.epoch(train, augmentation, until, interrupted):
                break
            if state.epoch % schedule.validate_every == 0 or state.epoch == schedule.epochs:
                figures = loop.validate(test, panel)
            if fabric.is_global_zero:
                after_epoch(state.epoch)
            loop.save()
    if not figures:  # resumed after the last epoch, or ended early
        figures = validate(fabric, module, test, schedule.batch_size, channels_last=schedule.channels_last)
    return Fitted(figures, state.history, state.seconds)


@torch.no_grad()
def validate(
    fabric: Fabric, module: nn.Module, test: ImageSet, batch_size: int, *, channels_last: bool
) -> dict[str, float]:
    """Return the task's figures in evaluation mode, averaged over all images and processes.

    Args:
        fabric: as in `fit`.
        module: the task as `fabric.setup` returned it.
        test: not augmented.
        batch_size: images at a time.
        channels_last: keep activations in NHWC order.
    """
    module.eval()
    means: dict[str, MeanMetric] = {}
    mine = torch.arange(len(test))[fabric.global_rank :: fabric.world_size]
    for batch in torch.split(mine, batch_size):
        x = _as_input(test.images[batch].to(fabric.device), channels_last)
        for name, value in module(x, test.labels[batch].to(fabric.device)).items():
            means.setdefault(name, MeanMetric().to(fabric.device)).update(value, weight=len(batch))
    return {name: float(mean.compute()) for name, mean in means.items()}


@dataclass
class _Saved:
    """What a checkpoint holds of a run, and where."""

    path: Path
    identity: str
    task: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler

    def save(self, state: _State) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.task.parameters()):
            raise TrainingError(f"weights are no longer finite; the previous checkpoint is kept in {self.path}")
        parts = {name: getattr(self, name).state_dict() for name in ("task", "optimizer", "scheduler")}
        save_checkpoint(self.path, {"identity": self.identity, **parts, **vars(state)})

    def load(self) -> _State:
        saved = load_checkpoint(self.path, _PARTS)
        if not same_identity(saved["identity"], self.identity):
            raise TrainingError(
                "the checkpoint belongs to another recipe; resume with the same one, or restart without --resume"
            )
        try:
            for name in ("task", "optimizer", "scheduler"):
                getattr(self, name).load_state_dict(saved[name])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError("the checkpoint does not fit these networks; restart without --resume") from error
        # checkpoints from before the history was kept have none
        return _State(saved["epoch"], saved["step"], saved["seconds"], saved.get("history", []))


@dataclass
class _Loop:
    """Steps, validations and checkpoints of one run."""

    fabric: Fabric
    module: nn.Module
    optimizer: Any
    scheduler: LRScheduler
    schedule: Schedule
    steps: int
    saved: _Saved
    state: _State
    report: Report
    last_saved: float = field(default_factory=time.monotonic)
    last_logged: float = field(default_factory=time.monotonic)

    def epoch(
        self, train: Images, augmentation: Augmentation, until: Callable[[], bool], interrupted: list[int]
    ) -> bool:
        """Train to the end of the epoch that the run stands in; return False if `until` ended it.

        Raises:
            TrainingError, Interrupted: as `fit`.
        """
        fabric, state, seed = self.fabric, self.state, self.schedule.seed
        self.module.train()
        place = {"first": state.step, "rank": fabric.global_rank, "world_size": fabric.world_size}
        batches = train.batches(_seed(seed, "order", state.epoch), self.schedule.batch_size, **place)
        while state.step < self.steps:
            if until():
                return False
            started = time.monotonic()
            x, labels = next(batches)
            here = state.epoch, state.step, fabric.global_rank
            x = augment(x.to(fabric.device), augmentation, _generator(seed, "augment", *here))
            torch.manual_seed(_seed(seed, "task", *here))
            self._step(x, labels, started)
            if self._any_process(bool(interrupted)):
                self.save()
                raise Interrupted(f"interrupted; saved in {self.saved.path}, continue with --resume")
            if self._any_process(time.monotonic() - self.last_saved > CHECKPOINT_EVERY_S):
                self.save()
        state.epoch, state.step = state.epoch + 1, 0
        return True

    def _step(self, x: Tensor, labels: Tensor, started: float) -> None:
        state = self.state
        losses = self.module(_as_input(x, self.schedule.channels_last), labels.to(self.fabric.device))
        if self.fabric.device.type == "cpu":  # elsewhere it would wait for the device at each step
            self._check_finite(losses["loss"])
        self.optimizer.zero_grad()
        self.fabric.backward(losses["loss"])
        self.optimizer.step()
        self.scheduler.step()
        state.step += 1
        now = time.monotonic()
        state.seconds += now - started
        if now - self.last_logged > LOG_EVERY_S or state.step == self.steps:
            self.last_logged = now
            self._check_finite(losses["loss"])
            values = {name: float(value.detach()) for name, value in losses.items()}
            self.report.log(values, float(self.scheduler.get_last_lr()[0]), state.epoch * self.steps + state.step)
        self.report.step(state.epoch, state.step)

    def validate(self, test: ImageSet, panel: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """Validate, report it and keep it in the history."""
        channels_last = self.schedule.channels_last
        figures = validate(self.fabric, self.module, test, self.schedule.batch_size, channels_last=channels_last)
        images = panel(_as_input(test.images[:8].to(self.fabric.device), channels_last)) if panel else None
        self.report.validated(figures, self.state.epoch, images)
        self.state.history.append({"epoch": self.state.epoch, **figures})
        return figures

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        if self.fabric.is_global_zero:
            self.saved.save(self.state)
        self.fabric.barrier()
        self.last_saved = time.monotonic()

    def _check_finite(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            kept = f"; the last good state is kept in {self.saved.path}" if self.saved.path.exists() else ""
            raise TrainingError(
                f"the loss is {float(loss.detach())} at epoch {self.state.epoch + 1}, step {self.state.step + 1}{kept};"
                " lower the learning rate and restart, or resume if the machine is to blame"
            )

    def _any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process: all must save, or stop, at the same step."""
        if self.fabric.world_size == 1:
            return flag
        total = self.fabric.all_reduce(torch.tensor(float(flag), device=self.fabric.device), reduce_op="sum")
        return float(total) > 0  # type: ignore[arg-type]


def _as_input(images: Tensor, channels_last: bool) -> Tensor:
    x = images if images.is_floating_point() else images.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))


def _seed(*parts: object) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
