"""From a recipe to its images, in memory or streamed: for training, held out, and for tests."""

from __future__ import annotations

import logging

from lightning.fabric import Fabric

from sfumato.errors import RecipeError
from sfumato.lab.data import ImageSet, Stream, load_stream
from sfumato.lab.training.context import check_padding, load_both
from sfumato.lab.training.recipe import AnyRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.tasks import Utility

log = logging.getLogger(__name__)


def load_images(recipe: AnyRecipe, fabric: Fabric) -> tuple[ImageSet | Stream, ImageSet | None, ImageSet]:
    """Load the images that a recipe names.

    Returns:
        Training images; held-out images for a sketch's gate, None for other kinds; and test images. A stream can hold
        none out: its held-out images come from the test split, and are no test images.

    Raises:
        DataError: they cannot be read, see `load_images` and `load_stream`.
        RecipeError: the recipe does not fit them.
        TrainingError: training and test images do not go together.
    """
    held = recipe.held_out_images if isinstance(recipe, SketchRecipe) else 0
    if recipe.data.stream:
        stream, test_set = _open_stream(recipe, held)
        if fabric.is_global_zero:
            for remark in (*stream.remarks(), *test_set.remarks()):
                log.warning(remark)
        if not held:
            return stream, None, test_set
        test_set, held_out = test_set.split(held)
        return stream, held_out, test_set
    train_set, test_set = load_both(recipe.data, fabric, label_free=label_free(recipe))
    if not held:
        return train_set, None, test_set
    train_set, held_out = train_set.split(held)
    return train_set, held_out, test_set


def label_free(recipe: AnyRecipe) -> bool:
    """Return whether the labels of the training images are ignored."""
    if isinstance(recipe, SketchRecipe):
        return recipe.teacher_weight == 1
    if not isinstance(recipe, ObfuscatorRecipe):
        return False
    return not Utility(recipe.utility.teacher_weight, recipe.utility.feature_weight).label_weight


def _open_stream(recipe: AnyRecipe, held: int) -> tuple[Stream, ImageSet]:
    data = recipe.data
    if isinstance(recipe, ObfuscatorRecipe) and (label_free(recipe) or recipe.privacy.target == "class-mean"):
        raise RecipeError(
            "data.stream: predictions on all training images, or their class means, need all of them at once; leave "
            'the labels a share of the utility and privacy.target at "error", or leave out data.stream'
        )
    assert data.size is not None and data.test_images is not None  # the recipe was validated
    check_padding(data, data.size)
    return load_stream(
        data.source,
        data.size,
        train_images=data.train_images,
        test_images=data.test_images + held,
        image_column=data.image_column,
        label_column=data.label_column,
    )
