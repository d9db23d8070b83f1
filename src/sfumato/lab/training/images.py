"""From a recipe to its images: in memory or streamed, those to train on, those held out, those to test on."""

from __future__ import annotations

import logging

from lightning.fabric import Fabric

from sfumato.errors import RecipeError
from sfumato.lab.data import ImageSet, Stream, load_stream
from sfumato.lab.training.context import load_both
from sfumato.lab.training.recipe import AnyRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.tasks import Utility

log = logging.getLogger(__name__)


def load_images(recipe: AnyRecipe, fabric: Fabric) -> tuple[ImageSet | Stream, ImageSet | None, ImageSet]:
    """The images that a recipe names.

    Returns:
        Those to train on; those held out for a sketch's gate, None for other kinds; and those to test on. A stream can
        hold none out: then they come from the test split, as the test images do, and are none of these.

    Raises:
        DataError: they cannot be read, see `load_images` and `load_stream`.
        RecipeError: the recipe asks for what cannot be done with them.
        TrainingError: training and test images do not go together.
    """
    kept_away = recipe.held_out_images if isinstance(recipe, SketchRecipe) else 0
    if recipe.data.stream:
        stream, test_set = _open_stream(recipe, kept_away)
        if fabric.is_global_zero:
            for remark in (*stream.remarks(), *test_set.remarks()):
                log.warning(remark)
        if not kept_away:
            return stream, None, test_set
        test_set, held_out = test_set.split(kept_away)
        return stream, held_out, test_set
    train_set, test_set = load_both(recipe.data, fabric, label_free=label_free(recipe))
    if not kept_away:
        return train_set, None, test_set
    train_set, held_out = train_set.split(kept_away)
    return train_set, held_out, test_set


def label_free(recipe: AnyRecipe) -> bool:
    """Whether the labels of the training images are not looked at."""
    if isinstance(recipe, SketchRecipe):
        return recipe.teacher_weight == 1
    if not isinstance(recipe, ObfuscatorRecipe):
        return False
    return not Utility(recipe.utility.teacher_weight, recipe.utility.feature_weight).label_weight


def _open_stream(recipe: AnyRecipe, kept_away: int) -> tuple[Stream, ImageSet]:
    data = recipe.data
    if isinstance(recipe, ObfuscatorRecipe) and (label_free(recipe) or recipe.privacy.target == "class-mean"):
        raise RecipeError(
            "data.stream: answers to all training images, or their class means, need all of them at once; leave the "
            'labels a share of the utility and privacy.target at "error", or leave out data.stream'
        )
    assert data.size is not None and data.test_images is not None  # the recipe was validated
    if data.crop_padding >= min(data.size):
        raise RecipeError(f"data.crop_padding {data.crop_padding} must be smaller than the images' sides")
    return load_stream(
        data.source,
        data.size,
        train_images=data.train_images,
        test_images=data.test_images + kept_away,
        image_column=data.image_column,
        label_column=data.label_column,
    )
