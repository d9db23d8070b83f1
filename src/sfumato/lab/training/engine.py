"""The one training loop: order, steps, validation, checkpoints, interrupts, and the reports of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torchmetrics import MeanMetric

from sfumato.artifacts.signals import interruptible
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.data import Augmentation, ImageSet
from sfumato.lab.models.checkpoint import load_checkpoint, same_identity, save_checkpoint
from sfumato.lab.training.batches import Images, Place, as_input, augmented, derived_seed
from sfumato.lab.training.loggers import log_images
from sfumato.lab.training.muon import Muon
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.teacher_views import TeacherViews
from sfumato.lab.training.weight_average import WeightAverage
from sfumato.progress import Progress, Say, mute, silent

CHECKPOINT_EVERY_S = 60.0
LOG_EVERY_S = 2.0
INT8_RATE = 0.1
"""Of the learning rate, in the epochs in 8-bit integers: where norms no longer normalise, larger steps diverge."""
_STATEFUL, _PLACE = ("task", "optimizer", "scheduler"), ("epoch", "step", "seconds")
_PARTS = frozenset({"identity", *_STATEFUL, *_PLACE})


@dataclass(frozen=True)
class Options:
    """How a run is carried out, which its result does not depend on; see `sfumato.lab.training.train`."""

    accelerator: str = "auto"
    devices: int = 1
    resume: bool = False
    overwrite: bool = False
    progress: Progress = silent
    say: Say = mute
    loggers: Sequence[str] | None = None
    log_images: bool = False


def never() -> bool:
    """Return False."""
    return False


@dataclass(frozen=True)
class Hooks:
    """What is called on the way.

    Attributes:
        before_epoch: is given how many epochs are done, in every process; may reset parameters, and returns those: the
            optimiser's state of them is dropped.
        after_epoch: is given how many epochs are done, in the first process alone.
        until: is asked before each step; True ends the run early.
    """

    before_epoch: Callable[[int], Iterable[nn.Parameter]] = lambda epoch: ()
    after_epoch: Callable[[int], None] = lambda epoch: None
    until: Callable[[], bool] = never


@dataclass(frozen=True)
class Fitted:
    """The result of a training.

    Attributes:
        figures: of the last validation.
        history: "epoch", how many were done, and the figures of each validation, the last one included.
        seconds: of all training steps, over all parts of an interrupted run.
        epochs: that were finished: those of the plan, unless the run was ended early.
    """

    figures: dict[str, float]
    history: list[dict[str, float]]
    seconds: float
    epochs: int = 0


def optimizers_of(plan: TrainingRecipe, task: nn.Module, *, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Return the optimiser of a task's trainable parameters, and its schedule; there are so many steps per epoch."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    rate, decay = plan.learning_rate, plan.weight_decay
    optimizer: Optimizer
    if plan.optimizer == "muon":
        optimizer = Muon(task, rate, weight_decay=decay)
    elif plan.optimizer == "adam":
        optimizer = Adam(parameters, rate, weight_decay=decay, fused=True)  # one call for all; a fifth of the time
    else:
        optimizer = SGD(parameters, rate, weight_decay=decay, momentum=0.9, nesterov=True)
    if plan.schedule == "one-cycle":
        total = plan.epochs * steps + 1
        return optimizer, OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            pct_start=plan.warmup if plan.warmup * total != 1 else 0.0,  # torch divides by the steps after the first
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=1000,
        )
    every = plan.step_epochs if plan.schedule == "step" else plan.epochs + 1
    return optimizer, StepLR(optimizer, step_size=every * steps, gamma=0.1)


def fit(
    fabric: Fabric,
    task: nn.Module,
    plan: TrainingRecipe,
    *,
    train: Images,
    test: ImageSet,
    augmentation: Augmentation,
    checkpoint: Path,
    identity: str,
    options: Options,
    optimizers: tuple[Optimizer, LRScheduler] | None = None,
    hooks: Hooks | None = None,
    views: TeacherViews | None = None,
) -> Fitted:
    """Train a task to the end of its plan.

    The order of the images, their augmentation and what a task samples (torch's own generator is seeded at each step)
    depend on seed, epoch, step and process alone, so that a resumed run ends with the weights of one that was never
    interrupted.

    Args:
        fabric: launched; decides on devices, precision and processes.
        task: forward(images (N, 3, H, W) float in [0, 1], labels (N,) int64) -> scalars with "loss". If it has a method
            `panel`, images (N, 3, H, W) -> rows of images (R, N, 3, H, W), these go to the log at each validation. Its
            attribute `int8` is set in the epochs that the plan wants in 8-bit integers.
        plan: validated.
        train: the training images; floating-point ones are handed to the task as they are.
        test: the images of the validations.
        augmentation: of training batches.
        checkpoint: the file that the state is kept in.
        identity: the recipe as text; a checkpoint of another recipe is refused.
        options: whether to continue from `checkpoint`, and who is told of each step and each validation.
        optimizers: over the task's trained parameters, and the schedule, stepped after every step; None for the plan's.
        hooks: see `Hooks`.
        views: fixed ones of the training images, with which the task gets its teacher's logits as a third argument,
            (N, classes) float32; None to augment images afresh.

    Raises:
        TrainingError: too few images, a loss that is not finite, or a checkpoint that cannot be written or read.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    steps = len(train) // plan.batch_size
    if steps < 1 or plan.batch_size % fabric.world_size:
        raise TrainingError(
            f"batch_size {plan.batch_size} does not fit {len(train)} training images "
            f"on {fabric.world_size} processes: it must not exceed the first and be a multiple of the second"
        )
    optimizer, scheduler = optimizers or optimizers_of(plan, task, steps=steps)
    if plan.channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.compile:
        task.compile()  # in place: the weights keep their names
    module, wrapped = fabric.setup(task, optimizer)
    loop = _Loop(fabric, task, module, optimizer, wrapped, scheduler, plan, steps, checkpoint, identity, options, views)
    if plan.weight_average:
        loop.average = WeightAverage(task, plan.weight_average)
    if options.resume:
        loop.load()
    if isinstance(train, ImageSet):
        train = replace(train, images=train.images.to(fabric.device), labels=train.labels.to(fabric.device))
    figures = loop.run(train, test, augmentation, hooks or Hooks())
    if loop.average is not None:
        loop.average.exchange()
    return Fitted(figures, loop.history, loop.seconds, loop.epoch)


@torch.no_grad()
def validate(
    fabric: Fabric, module: nn.Module, test: ImageSet, batch_size: int, *, channels_last: bool
) -> dict[str, float]:
    """Return the figures of a task, as `fabric.setup` returned it, averaged over all images and processes."""
    module.eval()
    means: dict[str, MeanMetric] = {}
    mine = torch.arange(len(test))[fabric.global_rank :: fabric.world_size]
    for batch in torch.split(mine, batch_size):
        x = as_input(test.images[batch].to(fabric.device), channels_last=channels_last)
        for name, value in module(x, test.labels[batch].to(fabric.device)).items():
            means.setdefault(name, MeanMetric().to(fabric.device)).update(value, weight=len(batch))
    return {name: float(mean.compute()) for name, mean in means.items()}


@dataclass
class _Loop:
    """One run: what it trains, with what, and where it stands; `step` counts steps within `epoch`."""

    fabric: Fabric
    task: nn.Module
    module: nn.Module
    optimizer: Optimizer
    wrapped: Any
    scheduler: LRScheduler
    plan: TrainingRecipe
    steps: int
    checkpoint: Path
    identity: str
    options: Options
    views: TeacherViews | None = None
    average: WeightAverage | None = None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    last_saved: float = field(default_factory=time.monotonic)
    last_logged: float = field(default_factory=time.monotonic)
    speed_since: tuple[float, int] | None = None
    note: str = ""

    @property
    def stateful(self) -> tuple[str, ...]:
        """The attributes whose states a checkpoint holds."""
        return _STATEFUL if self.average is None else (*_STATEFUL, "average")

    def load(self) -> None:
        saved = load_checkpoint(self.checkpoint, _PARTS)
        if not same_identity(saved["identity"], self.identity):
            raise TrainingError(
                "the checkpoint belongs to another recipe; resume with the same one, or restart without --resume"
            )
        try:
            for name in self.stateful:
                getattr(self, name).load_state_dict(saved[name])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError("the checkpoint does not fit these networks; restart without --resume") from error
        for name in _PLACE:
            setattr(self, name, saved[name])
        self.history = saved.get("history", [])  # older checkpoints have none

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        if self.fabric.is_global_zero:
            if not all(bool(torch.isfinite(p).all()) for p in self.task.parameters()):
                raise TrainingError(
                    f"weights are no longer finite; the previous checkpoint is kept in {self.checkpoint}"
                )
            if self.views is not None:  # first: the checkpoint must not know of more than they
                self.views.save()
            parts = {name: getattr(self, name).state_dict() for name in self.stateful}
            place = {name: getattr(self, name) for name in (*_PLACE, "history")}
            save_checkpoint(self.checkpoint, {"identity": self.identity, **parts, **place})
        self.fabric.barrier()
        self.last_saved = time.monotonic()

    def run(self, train: Images, test: ImageSet, augmentation: Augmentation, hooks: Hooks) -> dict[str, float]:
        """Train to the end, or until a hook ends it, and return the figures of the last validation."""
        plan, figures = self.plan, None
        with interruptible() as interrupted:
            while self.epoch < plan.epochs:
                if self.step == 0:  # else it is in the checkpoint already
                    for parameter in hooks.before_epoch(self.epoch):
                        self.optimizer.state.pop(parameter, None)
                if not self._train_epoch(train, augmentation, hooks.until, interrupted):
                    break
                if self.epoch % plan.validate_every == 0 or self.epoch == plan.epochs:
                    figures = self._validate(test)
                if self.fabric.is_global_zero:
                    with self._averaged():
                        hooks.after_epoch(self.epoch)
                self.save()
        if figures is not None:
            return figures
        return self._figures(test)  # resumed after the last epoch, or ended early

    def _train_epoch(
        self, train: Images, augmentation: Augmentation, until: Callable[[], bool], interrupted: list[int]
    ) -> bool:
        """Train to the end of the epoch that the run stands in; return False if `until` ended it."""
        if self.plan.int8_epochs:
            task: Any = self.task
            task.int8 = self.epoch >= self.plan.epochs - self.plan.int8_epochs
        self.module.train()
        batches = self._batches(train, augmentation)
        while self.step < self.steps:
            if self._any_process(until()):
                return False
            started = time.monotonic()
            batch = next(batches)
            torch.manual_seed(derived_seed(self.plan.seed, "task", self.epoch, self.step, self.fabric.global_rank))
            self._train_step(batch, started)
            if self._any_process(bool(interrupted)):
                self.save()
                raise Interrupted(f"interrupted; saved in {self.checkpoint}, continue with --resume")
            if self._any_process(time.monotonic() - self.last_saved > CHECKPOINT_EVERY_S):
                self.save()
        self.epoch, self.step = self.epoch + 1, 0
        return True

    def _batches(self, train: Images, augmentation: Augmentation) -> Iterator[tuple[Tensor, ...]]:
        """Yield what the task takes in each of the steps that are left of the epoch."""
        fabric = self.fabric
        place = Place(self.epoch, self.step, fabric.global_rank, fabric.world_size)
        if self.views is None:
            return augmented(train, self.plan, augmentation, place, fabric.device)
        assert isinstance(train, ImageSet)  # the recipe was validated
        return self.views.batches(train, self.plan, place, fabric)

    def _train_step(self, batch: tuple[Tensor, ...], started: float) -> None:
        losses = self.module(*batch)
        if self.fabric.device.type == "cpu":  # elsewhere it would wait for the device at each step
            self._check_finite(losses["loss"])
        self.wrapped.zero_grad()
        self.fabric.backward(losses["loss"])
        self._step()
        self.scheduler.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.epoch * self.steps + self.step)
        now = time.monotonic()
        self.seconds += now - started
        if now - self.last_logged > LOG_EVERY_S or self.step == self.steps:
            self.last_logged = now
            self._check_finite(losses["loss"])
            self._log({name: float(value.detach()) for name, value in losses.items()}, now)
        taught = ", with the teacher" if self.views is not None and self.epoch < self.views.views else ""
        note = f"epoch {min(self.epoch + 1, self.plan.epochs)}/{self.plan.epochs}{taught}{self.note}"
        self.options.progress("training", self.epoch * self.steps + self.step, self.plan.epochs * self.steps, note)

    @property
    def _share(self) -> float:
        """Of the scheduled learning rate, what the epoch is trained with."""
        return INT8_RATE if getattr(self.task, "int8", False) else 1.0

    def _step(self) -> None:
        groups = self.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self._share
        self.wrapped.step()
        for group, rate in zip(groups, scheduled, strict=True):  # a schedule may start from it
            group["lr"] = rate

    def _log(self, losses: dict[str, float], now: float) -> None:
        """Log the figures of one training batch; the next steps report them."""
        global_step, speed = self.epoch * self.steps + self.step, ""
        if self.speed_since is not None:
            since, before = self.speed_since
            speed = f"  {(global_step - before) * self.plan.batch_size / max(1e-9, now - since):.0f} images/s"
        self.speed_since = now, global_step
        self.note = f"  {_spoken(losses)}{speed}"
        figures = {f"train/{name}": value for name, value in losses.items()}
        learning_rate = self._share * float(self.scheduler.get_last_lr()[0])
        self.fabric.log_dict({**figures, "learning_rate": learning_rate}, step=global_step)

    def _validate(self, test: ImageSet) -> dict[str, float]:
        """Validate, report it and keep it in the history."""
        figures = self._figures(test)
        self.history.append({"epoch": self.epoch, **figures})
        panel: Callable[[Tensor], Tensor] | None = getattr(self.task, "panel", None)
        self.options.say(f"epoch {self.epoch}/{self.plan.epochs}  test: {_spoken(figures)}")
        global_step = self.epoch * self.steps
        self.fabric.log_dict({f"test/{name}": value for name, value in figures.items()}, step=global_step)
        if panel is not None and self.fabric.loggers:
            rows = panel(as_input(test.images[:8].to(self.fabric.device), channels_last=self.plan.channels_last))
            log_images(self.fabric.loggers, rows, global_step)
        return figures

    def _figures(self, test: ImageSet) -> dict[str, float]:
        channels_last = self.plan.channels_last
        with self._averaged():
            return validate(self.fabric, self.module, test, self.plan.batch_size, channels_last=channels_last)

    def _averaged(self) -> AbstractContextManager[None]:
        """Have the networks use the average of their weights inside the block, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def _check_finite(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            kept = f"; the last good state is kept in {self.checkpoint}" if self.checkpoint.exists() else ""
            raise TrainingError(
                f"the loss is {float(loss.detach())} at epoch {self.epoch + 1}, step {self.step + 1}{kept};"
                " lower the learning rate and restart, or resume if the machine is to blame"
            )

    def _any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process: all must save, or stop, at the same step."""
        if self.fabric.world_size == 1:
            return flag
        total = self.fabric.all_reduce(torch.tensor(float(flag), device=self.fabric.device), reduce_op="sum")
        return float(total) > 0  # type: ignore[arg-type]


def _spoken(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
