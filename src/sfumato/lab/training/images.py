"""From a recipe to its images, in memory or streamed: for training, held out, and for tests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from lightning.fabric import Fabric
from torch import Tensor

from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import INFERENCE_BATCH, ImageSet, Stream, cifar10, load_images, load_stream
from sfumato.lab.training.recipe import AnyRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.recipe_parts import DataRecipe

log = logging.getLogger(__name__)

_FEW, _SAMPLED = 100, 10_000


def images_of(recipe: AnyRecipe, fabric: Fabric) -> tuple[ImageSet | Stream, ImageSet | None, ImageSet]:
    """Load the images that a recipe names.

    Returns:
        Training images; held-out images for a sketch's gate, None for other kinds; and test images. A stream can hold
        none out: its held-out images come from the test split, and are no test images.

    Raises:
        DataError: they cannot be read, see `sfumato.lab.data.load_images` and `load_stream`.
        RecipeError: the recipe does not fit them.
        TrainingError: training and test images do not go together.
    """
    held = recipe.held_out_images if isinstance(recipe, SketchRecipe) else 0
    held_out = None
    if recipe.data.stream:
        stream, test_set = _open_stream(recipe, held)
        _warn(fabric, (*stream.remarks(), *test_set.remarks()))
        if held:
            test_set, held_out = test_set.split(held)
        return stream, held_out, test_set
    train_set, test_set = load_both(recipe.data, fabric, label_free=label_free(recipe))
    if held:
        train_set, held_out = train_set.split(held)
    return train_set, held_out, test_set


def label_free(recipe: AnyRecipe) -> bool:
    """Return whether the labels of the training images are ignored."""
    if isinstance(recipe, ObfuscatorRecipe):
        return not recipe.utility.label_weight
    return recipe.teacher_weight == 1 and (isinstance(recipe, SketchRecipe) or bool(recipe.teachers))


def load_both(data: DataRecipe, fabric: Fabric, *, label_free: bool) -> tuple[ImageSet, ImageSet]:
    """Load training and test images into memory; if `label_free`, labels need not exist, and training ones are all 0.

    Raises:
        DataError: they cannot be loaded.
        TrainingError: they differ in classes or size.
        RecipeError: they are too small for what the recipe does to them, or are to be streamed.
    """
    if data.stream:
        raise RecipeError("data.stream: here all images are needed at once; leave it out")
    load = partial(
        load_images,
        size=data.size,
        image_column=data.image_column,
        label_column=data.label_column,
        label_columns=data.label_columns,
        allow_outside=data.allow_outside,
    )
    with fabric.rank_zero_first(local=True):  # the others then find the decoded images in the cache
        train_set = load(data.source, "train", unlabelled=label_free).subset(data.train_images).half(data.half)
        test_set = load(data.source, "test", unlabelled=label_free).subset(data.test_images)
    _warn(fabric, (*train_set.remarks(), *test_set.remarks()))
    if label_free:
        train_set = replace(train_set, names=test_set.names, labels=torch.zeros_like(train_set.labels))
    if train_set.names != test_set.names or train_set.images.shape[1:] != test_set.images.shape[1:]:
        raise TrainingError(f"{data.source}: training and test images differ in classes or size")
    _check_augmentation(data, train_set.images.shape[2:])
    return train_set, test_set


def _open_stream(recipe: AnyRecipe, held: int) -> tuple[Stream, ImageSet]:
    data = recipe.data
    if isinstance(recipe, ObfuscatorRecipe) and (label_free(recipe) or recipe.privacy.target == "class-mean"):
        raise RecipeError(
            "data.stream: predictions on all training images, or their class means, need all of them at once; leave "
            'the labels a share of the utility and privacy.target at "error", or leave out data.stream'
        )
    assert data.size is not None and data.test_images is not None  # the recipe was validated
    _check_augmentation(data, data.size)
    return load_stream(
        data.source,
        data.size,
        train_images=data.train_images,
        test_images=data.test_images + held,
        image_column=data.image_column,
        label_column=data.label_column,
    )


def _warn(fabric: Fabric, remarks: Sequence[str]) -> None:
    if fabric.is_global_zero:
        for remark in remarks:
            log.warning(remark)


def _check_augmentation(data: DataRecipe, size: Sequence[int]) -> None:
    if data.crop_padding >= min(size):
        raise RecipeError(f"data.crop_padding {data.crop_padding} must be smaller than the images' sides")
    if data.cutout >= min(size):
        raise RecipeError(f"data.cutout {data.cutout} must be smaller than the images' sides")


def preprocessing_of(source: str, images: ImageSet) -> Preprocessing:
    """Return the preprocessing for a new classifier of these images: their mean and standard deviation."""
    height, width = images.images.shape[2:]
    if source == "cifar10":
        return Preprocessing(height, width, cifar10.MEAN, cifar10.STD)
    # Over at most 10,000 images, which is exact enough, and few at a time to save memory.
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for part in torch.split(images.images[:_SAMPLED], _FEW):
        values = part.double().div_(255).transpose(0, 1).flatten(1)
        sums += torch.stack([values.sum(dim=1), values.square().sum(dim=1)])
    averages = sums / (min(len(images), _SAMPLED) * height * width)
    mean = tuple(round(float(v), 5) for v in averages[0])
    std = tuple(round(max(float(v), 1e-3), 5) for v in (averages[1] - averages[0].square()).clamp_min(0).sqrt())
    return Preprocessing(height, width, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def class_means(images: ImageSet) -> Tensor:
    """Return the mean image of each class, (classes, 3, H, W) float32 in [0, 1]; of an empty class, that of all."""
    counts = images.labels.bincount(minlength=len(images.names)).view(-1, 1, 1, 1)
    sums = torch.zeros(len(images.names), *images.images.shape[1:])
    for part, labels in zip(
        *(torch.split(part, INFERENCE_BATCH) for part in (images.images, images.labels)), strict=True
    ):
        sums.index_add_(0, labels, part.float() / 255)
    return torch.where(counts > 0, sums / counts.clamp_min(1), sums.sum(dim=0) / len(images))
