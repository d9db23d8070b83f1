"""The folder in which everything for the paper's tables is trained: what is there, and training what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from reproduction.plan import Item, Plan
from reproduction.schema import Begun, JointFigures, Origin, Validation
from sfumato.artifacts.bundle import MANIFEST, Bundle
from sfumato.artifacts.shipped import classifier_bundle, papers_obfuscator_bundle
from sfumato.errors import BundleError, RecipeError
from sfumato.lab.classifiers import FrozenClassifier, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.runs.trainings import State, finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, ObfuscatorRecipe, Run, load_recipe
from sfumato.progress import Progress, Say, mute, silent


@dataclass(frozen=True)
class Figures:
    """Figures of an obfuscator over all test images.

    Attributes:
        accuracy_plain: of its classifier on plain images, in [0, 1].
        accuracy_obfuscated: likewise, on obfuscated images.
        joint: errors of the jointly trained deobfuscator.
    """

    accuracy_plain: float
    accuracy_obfuscated: float
    joint: JointFigures


@dataclass(frozen=True)
class Lab:
    """The runs of one plan.

    Attributes:
        plan: what belongs to it.
        folder: of this size's runs.
        device: where attackers are trained and networks evaluated.
        progress: see `Progress`.
    """

    plan: Plan
    folder: Path
    device: torch.device
    progress: Progress = silent

    def path(self, item: Item) -> Path:
        """Return the folder of an item's bundle, which may not exist yet."""
        if item.shipped is not None:
            return classifier_bundle() if item.shipped == "classifier" else papers_obfuscator_bundle()
        return self.run(item).bundle

    def run(self, item: Item) -> Run:
        """Return the files of an item's training."""
        return Run(self.folder / item.name)

    def state(self, item: Item) -> State:
        """Return how far an item's training is.

        Raises:
            BundleError: its bundle is damaged, or for another classifier.
            TrainingError: its checkpoint is damaged.
        """
        state = State("done") if item.shipped is not None else state_of(self.run(item))
        if state.name == "done":
            self.bundle(item)  # refuses one for another classifier
        return state

    def bundle(self, item: Item) -> Bundle:
        """Load an item's bundle.

        Raises:
            BundleError: there is none, it is damaged, or it is for another classifier than the lab's.
        """
        found = Bundle.load(self.path(item), kind="classifier" if item.classifier is None else "obfuscator")
        if item.classifier is None:
            return found
        classifier = self.path(self.plan.item(item.classifier))
        if (classifier / MANIFEST).is_file():
            wanted = Bundle.load(classifier, kind="classifier").classifier_fingerprint
            if found.classifier_fingerprint != wanted:
                raise BundleError(
                    f"{found.path} was trained for another classifier than {classifier}; move {found.path.parent} "
                    "away to train it again"
                )
        return found

    def frozen(self, item: Item) -> FrozenClassifier:
        """Load the classifier that an obfuscator is for, with its weights."""
        assert item.classifier is not None
        return load_classifier(self.path(self.plan.item(item.classifier)))

    def recipe(self, item: Item) -> ClassifierRecipe | ObfuscatorRecipe:
        """Read an item's recipe and fill in its place in the lab.

        Raises:
            RecipeError: the file is missing or incorrect.
        """
        overrides = [*item.overrides, f"name={json.dumps(item.name)}"]
        for key, other in (("classifier", item.classifier), ("teacher", item.teacher)):
            if other is not None:
                overrides.append(f"{key}={json.dumps(str(self.path(self.plan.item(other))))}")
        found = load_recipe(Path(item.recipe), overrides)
        if not isinstance(found, ClassifierRecipe | ObfuscatorRecipe):
            raise RecipeError(f"{item.recipe} is of kind {found.kind!r}, which is none of the paper's networks")
        return found

    def make(self, item: Item, *, say: Say = mute) -> None:
        """Train an item, or resume its training; do nothing if it is done.

        Raises:
            SfumatoError: see `sfumato.lab.training.train`.
            Interrupted: Ctrl-C or SIGTERM; the state was saved.
        """
        if self.state(item).name != "done":
            start = None if item.start is None else self.bundle(self.plan.item(item.start))
            finish_training(self.recipe(item), self.run(item), start=start, progress=self.progress, say=say)

    @cached_property
    def _data(self) -> tuple[ImageSet, ImageSet]:
        train_set, test_set, _ = load_train_test(self.plan.data)
        return train_set, test_set

    @property
    def images(self) -> ImageSet:
        """The training images."""
        return self._data[0]

    @property
    def test(self) -> ImageSet:
        """The test images."""
        return self._data[1]

    def figures(self, item: Item) -> Figures:
        """Return the figures of an obfuscator."""
        stated = self._measured(item)
        joint = {key: stated.get(f"joint_deobfuscator_{key}") for key in ("mse", "psnr_db", "ssim")}
        joint_figures = JointFigures.model_validate({**joint, "test_images": stated["test_images"]})
        return Figures(stated["accuracy_plain"], stated["accuracy_obfuscated"], joint_figures)

    def accuracy(self, item: Item) -> float:
        """Return the accuracy of a classifier over all test images, in [0, 1]."""
        return float(self._measured(item)["accuracy_plain"])

    def _measured(self, item: Item) -> Mapping[str, Any]:
        """Measure a network through its ONNX files, unless its training measured the same on the same images."""
        bundle = self.bundle(item)
        measured = bundle.provenance.to_json().get("data_sha256") or {}
        if measured.get("test") == self.test.sha256 and bundle.figures.test_images == len(self.test):
            return bundle.figures.to_json()
        if item.classifier is None:
            return evaluate_classifier(bundle, self.test, progress=self.progress).to_json()
        classifier = self.bundle(self.plan.item(item.classifier))
        return evaluate_obfuscator(bundle, classifier, self.test, progress=self.progress).to_json()


def origin(bundle: Bundle) -> Origin:
    """Return how a bundle was trained."""
    recipe, facts = bundle.recipe.to_json(), bundle.provenance
    training = recipe.get("training") or {}
    return Origin(
        epochs=training["epochs"],
        seed=training.get("seed"),
        batch_size=training.get("batch_size"),
        optimizer=training.get("optimizer"),
        small_epochs=training.get("small_epochs", 0),
        precision=facts.precision,
        history=None if facts.history is None else tuple(map(Validation.model_validate, facts.history)),
        privacy_weight=recipe.get("privacy_weight"),
        train_images=facts.train_images,
        seconds=facts.training_seconds,
        device=facts.device or (facts.machine or {}).get("cpu"),
        commit=facts.commit,
        begun=_begun(facts.others.get("started_from")),
    )


def _begun(start: Mapping[str, Any] | None) -> Begun | None:
    """Return the trainings that one went on from: each bundle's provenance has that of the one before."""
    epochs, seconds = [], []
    while start is not None:
        training = start["training"]
        epochs.append(training["epochs"])
        seconds.append(training.get("training_seconds"))
        start = training.get("started_from")
    return Begun(epochs=sum(epochs), seconds=None if None in seconds else sum(seconds)) if epochs else None
