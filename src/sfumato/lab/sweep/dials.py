"""Dials: the values of a recipe to sweep, and the grid that they span, checked before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sfumato.errors import RecipeError
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, load_recipe

SEED = "training.seed"
_RESERVED = {"name": "each point is named after its setting", SEED: "--seeds N repeats each point with N seeds"}


@dataclass(frozen=True)
class Dial:
    """A key of a recipe, and the values that it takes.

    Attributes:
        key: such as "code_bits" or "training.epochs".
        values: as `--set` takes them.
    """

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One point of the grid, with one recipe for each seed.

    Attributes:
        label: such as "code_bits=4"; the recipe's name if there is no dial.
        values: of the dials, by key.
        names: one for each seed, also of its folder.
        recipes: one for each seed, validated.
    """

    label: str
    values: dict[str, str]
    names: tuple[str, ...]
    recipes: tuple[AnyRecipe, ...]


def parse_dial(text: str) -> Dial:
    """Parse a dial such as `code_bits=4,8,16`.

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
    return Dial(key, values)


def settings(recipe: Path, dials: Sequence[Dial], *, seeds: int, overrides: Sequence[str] = ()) -> list[Setting]:
    """Return every combination of the dials' values, each with its seeds.

    Args:
        recipe: the TOML file of an obfuscator.
        dials: of different keys.
        seeds: repetitions of each point, with the recipe's own seed and those that follow it.
        overrides: of the recipe, at every point, such as "training.epochs=4".

    Returns:
        Settings; the last dial varies fastest.

    Raises:
        RecipeError: the recipe cannot be read or is not an obfuscator's, a dial is unknown or has an invalid
            value, or points would not be comparable.
    """
    keys = [dial.key for dial in dials]
    if len(set(keys)) < len(keys):
        raise RecipeError(f"a dial is repeated: {', '.join(keys)}; give all values of a key at once")
    found = [
        _setting(recipe, dict(zip(keys, values, strict=True)), seeds, overrides)
        for values in product(*(dial.values for dial in dials))
    ]
    names = [name for setting in found for name in setting.names]
    if len(set(names)) < len(names):
        raise RecipeError("two values of a dial give the same folder's name; write them with letters, digits, . or _")
    recipes = [recipe for setting in found for recipe in setting.recipes]
    if len({_shared(recipe) for recipe in recipes}) > 1:
        raise RecipeError("a dial changes the classifier or the images; points of one frontier must share them")
    return found


def _setting(recipe: Path, values: dict[str, str], seeds: int, overrides: Sequence[str]) -> Setting:
    changed = [*overrides, *(f"{key}={value}" for key, value in values.items())]
    plain = load_recipe(recipe, changed)
    if isinstance(plain, ClassifierRecipe):
        raise RecipeError(f"{recipe} is of kind 'classifier'; a sweep takes the recipe of an obfuscator")
    place = [f"{key}-{value}" for key, value in values.items()]
    names, recipes = [], []
    for seed in range(plain.training.seed, plain.training.seed + seeds):
        name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join([*place, f"seed{seed}"]))
        names.append(name)
        recipes.append(load_recipe(recipe, [*changed, f"{SEED}={seed}", f'name="{plain.name}-{name}"']))
    label = ", ".join(f"{key}={value}" for key, value in values.items()) or plain.name
    return Setting(label, values, tuple(names), tuple(recipes))


def _shared(recipe: AnyRecipe) -> object:
    assert not isinstance(recipe, ClassifierRecipe)
    data = recipe.data
    return recipe.classifier, data.source, data.size, data.image_column, data.label_column, data.test_images
