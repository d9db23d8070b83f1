"""The surroundings of a training: processes and precision, images, and their augmentation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sfumato.artifacts.bundle import Preprocessing
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import Augmentation, ImageSet, cifar10, load_images
from sfumato.lab.models.precision import Precision, choose_precision
from sfumato.lab.training.engine import Schedule
from sfumato.lab.training.recipe import DataRecipe, TrainingRecipe

log = logging.getLogger(__name__)

_FEW = 100


def launch(plan: TrainingRecipe, folder: Path, accelerator: str, devices: int) -> tuple[Fabric, Precision]:
    """Return the fabric, which decides on device and processes, launched, and the precision.

    Raises:
        TrainingError: there is no such device, or it does not support the precision.
    """
    try:
        precision = choose_precision(plan.precision, Fabric(accelerator=accelerator, devices=1).device)
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision=precision.fabric,
            loggers=TensorBoardLogger(folder, name="tensorboard", version=""),
        )
        fabric.launch()  # also shares the cores out among the processes
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise TrainingError(f"cannot train on {devices} x {accelerator!r}: {str(error).splitlines()[0]}") from error
    return fabric, precision


def load_both(recipe: DataRecipe, fabric: Fabric, *, label_free: bool) -> tuple[ImageSet, ImageSet]:
    """Load training and test images into memory.

    Args:
        recipe: validated.
        fabric: launched.
        label_free: ignore the labels of the training images, which need not exist; they are all 0.

    Raises:
        DataError: they cannot be loaded.
        TrainingError: they differ in classes or size.
        RecipeError: they are too small for what the recipe does to them, or are to be streamed.
    """
    if recipe.stream:
        raise RecipeError("data.stream: here all images are needed at once; leave it out")
    load = partial(
        load_images,
        size=recipe.size,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        allow_outside=recipe.allow_outside,
    )
    with fabric.rank_zero_first(local=True):  # the others then find the decoded images in the cache
        train_set = load(recipe.source, "train", unlabelled=label_free).subset(recipe.train_images)
        test_set = load(recipe.source, "test").subset(recipe.test_images)
    if fabric.is_global_zero:
        for remark in (*train_set.remarks(), *test_set.remarks()):
            log.warning(remark)
    if label_free:
        train_set = replace(train_set, names=test_set.names, labels=torch.zeros_like(train_set.labels))
    if train_set.names != test_set.names or train_set.images.shape[1:] != test_set.images.shape[1:]:
        raise TrainingError(f"{recipe.source}: training and test images differ in classes or size")
    check_padding(recipe, train_set.images.shape[2:])
    return train_set, test_set


def check_padding(recipe: DataRecipe, size: Sequence[int]) -> None:
    """Check that images (H, W) can be shifted as far as the recipe says.

    Raises:
        RecipeError: they cannot.
    """
    if recipe.crop_padding >= min(size):
        raise RecipeError(f"data.crop_padding {recipe.crop_padding} must be smaller than the images' sides")


def preprocessing_of(source: str, images: ImageSet) -> Preprocessing:
    """Return the preprocessing for a new classifier of these images: their mean and standard deviation."""
    height, width = images.images.shape[2:]
    if source == "cifar10":
        return Preprocessing(height, width, cifar10.MEAN, cifar10.STD)
    # Over at most 10,000 images, which is exact enough, and few at a time to save memory.
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for part in torch.split(images.images[:10_000], _FEW):
        values = part.double().div_(255).transpose(0, 1).flatten(1)
        sums += torch.stack([values.sum(dim=1), values.square().sum(dim=1)])
    averages = sums / (min(len(images), 10_000) * height * width)
    mean = tuple(round(float(v), 5) for v in averages[0])
    std = tuple(round(max(float(v), 1e-3), 5) for v in (averages[1] - averages[0].square()).clamp_min(0).sqrt())
    return Preprocessing(height, width, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def augmentation_of(data: DataRecipe) -> Augmentation:
    """Return the augmentation that a recipe describes."""
    return Augmentation(flip=data.flip, crop_padding=data.crop_padding, zoom=data.zoom)


def schedule_of(plan: TrainingRecipe) -> Schedule:
    """Return the schedule that a recipe describes."""
    return Schedule(plan.epochs, plan.batch_size, plan.seed, plan.validate_every, plan.channels_last, plan.compile)
