"""Dials: the values of a recipe to sweep, and the grid that they span, checked before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sfumato.errors import RecipeError
from sfumato.lab.training.recipe import ClassifierRecipe, ObfuscatorRecipe, SketchRecipe, load_recipe

SEED = "training.seed"
_RESERVED = {"name": "each point is named after its setting", SEED: "--seeds N repeats each point with N seeds"}


@dataclass(frozen=True)
class Setting:
    """One point of the grid, with one recipe for each seed.

    Attributes:
        label: such as "code_bits=4"; the recipe's name if there is no dial.
        values: of the dials, by key.
        recipes: one for each seed, validated, by the name of its point and its folder.
    """

    label: str
    values: dict[str, str]
    recipes: dict[str, ObfuscatorRecipe | SketchRecipe]


def parse_dial(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the key of a dial such as `code_bits=4,8,16`, and its values as `--set` takes them.

    Raises:
        RecipeError: the text is no dial, or repeats a value.
    """
    key, separator, rest = text.partition("=")
    key, values = key.strip(), tuple(value.strip() for value in rest.split(","))
    if not separator or not key or not all(values):
        raise RecipeError(f"--sweep {text!r}: expected KEY=VALUE,VALUE,..., such as code_bits=4,8,16")
    if key in _RESERVED:
        raise RecipeError(f"--sweep {text!r}: {key!r} is no dial, {_RESERVED[key]}")
    if len(set(values)) < len(values):
        raise RecipeError(f"--sweep {text!r}: a value is there twice")
    return key, values


def settings(recipe: Path, dials: Sequence[str], *, seeds: int, overrides: Sequence[str] = ()) -> list[Setting]:
    """Return every combination of the dials' values, each with its seeds.

    Args:
        recipe: the TOML file of an obfuscator.
        dials: of different keys, see `parse_dial`.
        seeds: repetitions of each point, with the recipe's own seed and those that follow it.
        overrides: of the recipe, at every point, such as "training.epochs=4".

    Returns:
        Settings; the last dial varies fastest.

    Raises:
        RecipeError: the recipe cannot be read or is not an obfuscator's, a dial is unknown or has an invalid
            value, or points would not be comparable.
    """
    keys, values = [], []
    for key, given in map(parse_dial, dials):
        if key in keys:
            raise RecipeError(f"a dial is repeated: {key}; give all values of a key at once")
        keys.append(key)
        values.append(given)
    found = [_setting(recipe, dict(zip(keys, chosen, strict=True)), seeds, overrides) for chosen in product(*values)]
    if len({name for setting in found for name in setting.recipes}) < seeds * len(found):
        raise RecipeError("two values of a dial give the same folder's name; write them with letters, digits, . or _")
    if len({_shared(recipe) for setting in found for recipe in setting.recipes.values()}) > 1:
        raise RecipeError("a dial changes the classifier or the images; points of one frontier must share them")
    return found


def _setting(recipe: Path, values: dict[str, str], seeds: int, overrides: Sequence[str]) -> Setting:
    changed = [*overrides, *(f"{key}={value}" for key, value in values.items())]
    plain, recipes = _load(recipe, changed), {}
    for seed in range(plain.training.seed, plain.training.seed + seeds):
        place = [*(f"{key}-{value}" for key, value in values.items()), f"seed{seed}"]
        name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(place))
        recipes[name] = _load(recipe, [*changed, f"{SEED}={seed}", f'name="{plain.name}-{name}"'])
    label = ", ".join(f"{key}={value}" for key, value in values.items()) or plain.name
    return Setting(label, values, recipes)


def _load(recipe: Path, changed: list[str]) -> ObfuscatorRecipe | SketchRecipe:
    found = load_recipe(recipe, changed)
    if isinstance(found, ClassifierRecipe):
        raise RecipeError(f"{recipe} is of kind 'classifier'; a sweep takes the recipe of an obfuscator")
    return found


def _shared(recipe: ObfuscatorRecipe | SketchRecipe) -> object:
    data = recipe.data
    return recipe.classifier, data.source, data.size, data.image_column, data.label_column, data.test_images
