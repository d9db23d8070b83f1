"""The plan of a sweep, checked before anything is trained; what is there already, and how long the rest takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import AuditError, RecipeError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.lab.runs.speed import Entry, Speed, device_macs
from sfumato.lab.sweep.dials import Setting, settings
from sfumato.lab.sweep.jobs import Job, fastest_device, images, known_audit, recipe_of, training_state
from sfumato.lab.sweep.schema import DeviceCost
from sfumato.lab.training import Run
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, ObfuscatorRecipe, SketchRecipe, load_recipe

LOCAL = "local"
"""The name of the on-device baseline, where the sweep trains it."""


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
            left = epochs - state.epochs
            seconds = speed.training_s(recipe, len(train), left, classifier=sweep.classifier.net, **_size(sweep))
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
        obfuscator_macs=max(device_macs(job.recipe, **_size(sweep)) for job in sweep.jobs.values()),
        on_device_macs=device_macs(local, **_size(sweep)) if isinstance(local, ClassifierRecipe) else None,
    )


def _size(sweep: Sweep) -> dict[str, int]:
    size = sweep.classifier.preprocessing
    return {"height": size.height, "width": size.width, "classes": len(sweep.classifier.labels)}


def _local(path: Path, swept: ObfuscatorRecipe | SketchRecipe) -> ClassifierRecipe:
    """Return the on-device baseline's recipe, on the images of the sweep and taught by its classifier."""
    plain = load_recipe(path)
    if not isinstance(plain, ClassifierRecipe):
        raise RecipeError(f"{path} is of kind {plain.kind!r}; --local-recipe takes the recipe of a classifier")
    changed = [f"data.source={json.dumps(swept.data.source)}"]
    if swept.data.size is not None:
        changed.append(f"data.size={list(swept.data.size)}")
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
