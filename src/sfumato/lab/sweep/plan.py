"""The plan of a sweep, checked before anything is trained; what is there already, and how long the rest takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import AuditError, RecipeError
from sfumato.lab.audit.budget import Budget
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.classifiers import FrozenClassifier, classifier_bundle, load_classifier
from sfumato.lab.runs.speed import Entry, Shape, Speed, device_macs
from sfumato.lab.sweep.dials import Setting, parse_dial, settings
from sfumato.lab.sweep.jobs import AuditOptions, Job, fastest_device, images, known_audit, training_state
from sfumato.lab.sweep.schema import DeviceCost
from sfumato.lab.training.recipe import AnyRecipe, ClassifierRecipe, DataRecipe, load_recipe, parse_recipe

LOCAL = "local"
"""The name of the on-device baseline, where the sweep trains it."""


@dataclass(frozen=True)
class Sweep:
    """One recipe at several settings of its dials.

    Attributes:
        recipe: the TOML file.
        settings: in order, each with its seeds.
        folder: of everything: `points/` with a run and its audit each, `local/`, `audits/`, and the results.
        budget: of the audits.
        classifier: that all points are for.
        images: number of training and of test images of the audits; None for all.
        local: folder of the on-device baseline's bundle; None if none was given.
        local_recipe: to train that baseline by.
        others: contents of other audits, by file.
    """

    recipe: Path
    settings: list[Setting]
    folder: Path
    budget: Budget
    classifier: FrozenClassifier
    images: int | None = None
    local: Path | None = None
    local_recipe: ClassifierRecipe | None = None
    others: dict[Path, AuditResult] = field(default_factory=dict)

    @property
    def local_job(self) -> Job | None:
        """The on-device baseline, where the sweep trains it."""
        if self.local_recipe is None:
            return None
        return Job(LOCAL, self.local_recipe, str(self.folder / LOCAL), None)

    @property
    def local_bundle(self) -> Path | None:
        """The folder of the on-device baseline's bundle, which may not exist yet."""
        return self.local if self.local_job is None else self.local_job.run.bundle

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """One job for each point, by its name."""
        audit = AuditOptions(self.budget, None if self.local_bundle is None else str(self.local_bundle), self.images)
        return {
            name: Job(name, recipe, str(self.folder / "points" / name), audit)
            for setting in self.settings
            for name, recipe in zip(setting.names, setting.recipes, strict=True)
        }


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
    found = settings(recipe, [parse_dial(dial) for dial in dials], seeds=seeds, overrides=overrides)
    first = found[0].recipes[0]
    assert not isinstance(first, ClassifierRecipe)
    classifier = load_classifier(classifier_bundle(first.classifier, folder / "classifier"))
    train, test = images(first.data, images_each)
    if len(train.names) == len(classifier.labels):  # an audit needs images of every class
        train, test = train.of_classes(classifier.labels), test.of_classes(classifier.labels)
    _check_fit("the data", classifier, (train.images.shape[2], train.images.shape[3]), train.names)
    if local is not None:
        bundle = Bundle.load(local, kind="classifier")
        _check_fit(str(local), classifier, (bundle.preprocessing.height, bundle.preprocessing.width), bundle.labels)
    return Sweep(
        recipe=recipe,
        settings=found,
        folder=folder,
        budget=budget,
        classifier=classifier,
        images=images_each,
        local=local,
        local_recipe=None if local_recipe is None else _local(local_recipe, first.data, first.classifier),
        others={} if compare_with is None else _others(compare_with, test.source),
    )


def _others(folder: Path, source: str) -> dict[Path, AuditResult]:
    """Read other audits, and report broken or foreign ones now, not in some hours."""
    others = read_audits(folder)
    for file, audit in others.items():
        if audit.data.source != source:
            raise AuditError(
                f"{file} is an audit on {audit.data.source}, this sweep is on {source}; audits of several data "
                "sets cannot share one plot"
            )
    return others


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
            seconds = speed.training_s(
                recipe,
                _train_images(recipe) * (epochs - state.epochs),
                classifier=sweep.classifier.net,
                shape=_shape(sweep),
            )
        entries.append(Entry(job.name, state.of(epochs), seconds))
        if job.audit is not None:
            done = state.name == "done" and known_audit(job) is not None
            audited = None if done else speed.audit_s(sweep.budget)
            entries.append(Entry(f"audit of {job.name}", "done" if done else "missing", audited))
    return entries


def device_cost(sweep: Sweep) -> DeviceCost:
    """Count multiply-accumulates per image on the device."""
    recipes = [recipe for setting in sweep.settings for recipe in setting.recipes]
    local = sweep.local_recipe
    if sweep.local is not None:
        try:
            stated = parse_recipe(Bundle.load(sweep.local).recipe.to_json())
        except RecipeError:
            stated = None
        local = stated if isinstance(stated, ClassifierRecipe) else None
    return DeviceCost(
        obfuscator_macs=max(device_macs(recipe, _shape(sweep)) for recipe in recipes),
        on_device_macs=None if local is None else device_macs(local, _shape(sweep)),
    )


def _shape(sweep: Sweep) -> Shape:
    size = sweep.classifier.preprocessing
    return Shape(size.height, size.width, len(sweep.classifier.labels))


def _train_images(recipe: AnyRecipe) -> int:
    train, _ = images(recipe.data, None)
    return min(len(train), recipe.data.train_images or len(train))


def _local(path: Path, data: DataRecipe, classifier: str) -> ClassifierRecipe:
    plain = load_recipe(path)
    if not isinstance(plain, ClassifierRecipe):
        raise RecipeError(f"{path} is of kind {plain.kind!r}; --local-recipe takes the recipe of a classifier")
    changed = [f"data.source={json.dumps(data.source)}"]
    if data.size is not None:
        changed.append(f"data.size={list(data.size)}")
    if data.allow_outside:
        changed.append("data.allow_outside=true")
    if plain.teacher is not None:
        changed.append(f"teacher={json.dumps(classifier)}")
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
