"""The optimiser and the learning rate schedule that a recipe names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from sfumato.lab.training.recipe import TrainingRecipe


def optimizer_of(plan: TrainingRecipe, task: nn.Module, *, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return the optimiser of a task's trainable parameters, and the schedule of its learning rate.

    Args:
        plan: validated.
        task: what takes no gradient is left out.
        steps: per epoch.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    optimizer: torch.optim.Optimizer
    if plan.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, fused=True, **options)  # one call for all; a fifth of the time
    else:
        optimizer = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **options)
    steps = max(1, steps)
    if plan.schedule == "one-cycle":
        return optimizer, OneCycleLR(
            optimizer,
            max_lr=plan.learning_rate,
            total_steps=plan.epochs * steps + 1,
            pct_start=plan.warmup,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=10,
            final_div_factor=1000,
        )
    every = plan.step_epochs if plan.schedule == "step" else plan.epochs + 1
    return optimizer, StepLR(optimizer, step_size=every * steps, gamma=0.1)
