"""The plan of a sweep: the grid of a recipe's values, checked before anything is trained, and what is left to make."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import AuditError, RecipeError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.lab.models.precision import fastest_device
from sfumato.lab.runs.speed import Entry, Shape, Speed, device_macs, taught_epochs
from sfumato.lab.sweep.jobs import Job, images, known_audit, recipe_of, training_state
from sfumato.lab.sweep.schema import DeviceCost
from sfumato.lab.training import Run
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, ObfuscatorRecipe, SketchRecipe, load_recipe

LOCAL = "local"
"""The name of the on-device baseline, where the sweep trains it."""
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


@dataclass(frozen=True)
class Sweep:
    """One recipe at several settings of its dials, for one classifier; its folder holds everything that is made.

    Attributes:
        jobs: one for each point, by its name, in the folder `points`.
        local: folder of the on-device baseline's bundle, which may not exist yet; None without one.
        local_job: that trains it, where the sweep does.
        others: contents of other audits, by file.
    """

    recipe: Path
    settings: list[Setting]
    folder: Path
    budget: Budget
    classifier: FrozenClassifier
    jobs: dict[str, Job]
    local: Path | None
    local_job: Job | None
    others: dict[Path, AuditResult]


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


def plan_sweep(
    recipe: Path,
    folder: Path,
    budget: Budget,
    *,
    dials: Sequence[str] = (),
    seeds: int = 1,
    overrides: Sequence[str] = (),
    images_each: int | None = None,
    local: Path | None = None,
    local_recipe: Path | None = None,
    compare_with: Path | None = None,
) -> Sweep:
    """Plan a sweep, and check all that can be checked before anything is trained.

    Args:
        recipe: the TOML file of an obfuscator.
        folder: of everything that the sweep writes.
        budget: of the audits.
        dials: such as "code_bits=4,8,16".
        seeds: how often each point is repeated.
        overrides: of the recipe at every point, such as "training.epochs=4".
        images_each: number of training and of test images in audits.
        local: folder of an on-device baseline's bundle.
        local_recipe: a TOML file to train that baseline by instead, on the same images, with the sweep's
            classifier as its teacher if it has one.
        compare_with: folder of other audits.

    Raises:
        SfumatoError: a dial, recipe, bundle, data set or audit is wrong, or does not fit the others.
    """
    if local is not None and local_recipe is not None:
        raise RecipeError("--local is a trained classifier, --local-recipe trains one; choose one")
    found = settings(recipe, dials, seeds=seeds, overrides=overrides)
    points = {name: given for setting in found for name, given in setting.recipes.items()}
    first = next(iter(points.values()))
    classifier = load_classifier(classifier_bundle(first.classifier, folder / "classifier"))
    train, test = images(first.data, images_each)
    if len(train.names) == len(classifier.labels):  # an audit needs images of every class
        train, test = train.of_classes(classifier.labels), test.of_classes(classifier.labels)
    _check_fit("the data", classifier, (train.images.shape[2], train.images.shape[3]), train.names)
    local_job = None
    if local is not None:
        bundle = Bundle.load(local, kind="classifier")
        _check_fit(str(local), classifier, (bundle.preprocessing.height, bundle.preprocessing.width), bundle.labels)
    if local_recipe is not None:
        local_job = Job(LOCAL, _local(local_recipe, first), Run(folder / LOCAL))
        local = local_job.run.bundle
    jobs = {
        name: Job(name, given, Run(folder / "points" / name), budget, local, images_each)
        for name, given in points.items()
    }
    others = {} if compare_with is None else read_audits(compare_with)
    for file, audit in others.items():  # now, not in some hours
        if audit.data.source != test.source:
            raise AuditError(
                f"{file} is an audit on {audit.data.source}, this sweep is on {test.source}; audits of several data "
                "sets cannot share one plot"
            )
    return Sweep(recipe, found, folder, budget, classifier, jobs, local, local_job, others)


def listing(sweep: Sweep) -> list[Entry]:
    """List what a sweep needs, in the order in which it is made; train nothing.

    Raises:
        SfumatoError: something that is there is damaged, or belongs to something else.
    """
    speed = Speed(fastest_device())
    entries = []
    for job in [*filter(None, [sweep.local_job]), *sweep.jobs.values()]:
        recipe, state, seconds = job.recipe, training_state(job), None
        epochs = recipe.training.epochs
        if state.name != "done":
            train, _ = images(recipe.data, recipe.data.train_images)
            seconds = speed.training_s(
                recipe,
                len(train) * (epochs - state.epochs),
                taught=len(train) * taught_epochs(recipe, state.epochs),
                classifier=sweep.classifier.net,
                shape=_shape(sweep),
            )
        entries.append(Entry(job.name, state.of(epochs), seconds))
        if job.budget is not None:
            done = state.name == "done" and known_audit(job) is not None
            audited = None if done else speed.audit_s(job.budget)
            entries.append(Entry(f"audit of {job.name}", "done" if done else "missing", audited))
    return entries


def device_cost(sweep: Sweep) -> DeviceCost:
    """Count multiply-accumulates per image on the device."""
    local: AnyRecipe | None = None
    if sweep.local_job is not None:
        local = sweep.local_job.recipe
    elif sweep.local is not None:
        local = recipe_of(Bundle.load(sweep.local))
    return DeviceCost(
        obfuscator_macs=max(device_macs(job.recipe, _shape(sweep)) for job in sweep.jobs.values()),
        on_device_macs=device_macs(local, _shape(sweep)) if isinstance(local, ClassifierRecipe) else None,
    )


def _shape(sweep: Sweep) -> Shape:
    size = sweep.classifier.preprocessing
    return Shape(size.height, size.width, len(sweep.classifier.labels))


def _local(path: Path, swept: ObfuscatorRecipe | SketchRecipe) -> ClassifierRecipe:
    """Return the on-device baseline's recipe, on the images of the sweep and taught by its classifier."""
    plain = load_recipe(path)
    if not isinstance(plain, ClassifierRecipe):
        raise RecipeError(f"{path} is of kind {plain.kind!r}; --local-recipe takes the recipe of a classifier")
    changed = [f"data.source={json.dumps(swept.data.source)}"]
    if swept.data.size is not None:
        changed.append(f"data.size={list(swept.data.size)}")
    if swept.data.allow_outside:
        changed.append("data.allow_outside=true")
    if plain.teacher is not None:
        changed.append(f"teacher={json.dumps(swept.classifier)}")
    found = load_recipe(path, changed)
    assert isinstance(found, ClassifierRecipe)
    return found


def _check_fit(what: str, classifier: FrozenClassifier, size: tuple[int, int], names: tuple[str, ...]) -> None:
    wanted = classifier.preprocessing.height, classifier.preprocessing.width
    if size != wanted:
        raise RecipeError(f"{what} has images of {size}, the classifier {classifier.name} takes {wanted}")
    if tuple(names) != tuple(classifier.labels):
        raise RecipeError(
            f"{what} has the classes {', '.join(names[:4])}, ...; the classifier {classifier.name} has "
            f"{', '.join(classifier.labels[:4])}, ...: accuracies could not be measured"
        )
