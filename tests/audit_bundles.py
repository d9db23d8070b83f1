"""Baselines as bundles, for a classifier that was never trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.lab.baselines import build, write_baseline
from sfumato.lab.baselines.bundles import BaselineRecipe
from sfumato.lab.classifiers import FrozenClassifier

SIZE = (16, 16)


def images(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(5))


def frozen() -> FrozenClassifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    return FrozenClassifier(
        net, "net", ("a", "b", "c", "d"), Preprocessing(*SIZE, (0.4, 0.5, 0.6), (0.2,) * 3), "sha256:0"
    )


def written(folder: Path, name: str) -> Bundle:
    method = build(name, *SIZE, seed=3)
    recipe = BaselineRecipe(name, method.seed, method.strength, data="made up")
    return write_baseline(folder, method, recipe=recipe, classifier=frozen(), images_for_check=images(4))
