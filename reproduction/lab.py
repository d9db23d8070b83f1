"""The folder in which everything for the paper's tables is trained: what is there, and making what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from reproduction.plan import Item, Plan
from sfumato.artifacts.bundle import MANIFEST, Bundle
from sfumato.artifacts.shipped import classifier_bundle, papers_obfuscator_bundle
from sfumato.errors import BundleError, RecipeError
from sfumato.lab.classifiers import FrozenClassifier, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.runs.trainings import State, finish_training, state_of
from sfumato.lab.training import ClassifierRecipe, ObfuscatorRecipe, Run, load_recipe
from sfumato.progress import Progress


@dataclass(frozen=True)
class Lab:
    """The runs of one plan.

    Attributes:
        plan: what belongs into it.
        folder: of this size's runs.
        bars: make something that shows progress while it is entered.
        device: where attackers are trained and networks evaluated.
    """

    plan: Plan
    folder: Path
    bars: Callable[[], AbstractContextManager[Progress]]
    device: torch.device

    def path(self, item: Item) -> Path:
        """Where an item's bundle lies, or will."""
        if item.shipped is not None:
            return classifier_bundle() if item.shipped == "classifier" else papers_obfuscator_bundle()
        return self.run(item).bundle

    def run(self, item: Item) -> Run:
        """The files of an item's training."""
        return Run(self.folder / item.name)

    def state(self, item: Item) -> State:
        """How far an item is.

        Raises:
            BundleError: its bundle is damaged, or for another classifier.
            TrainingError: its checkpoint is damaged.
        """
        state = State("done") if item.shipped is not None else state_of(self.run(item))
        if state.name == "done":
            self.bundle(item)  # refuses one for another classifier
        return state

    def bundle(self, item: Item) -> Bundle:
        """An item's bundle.

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
                    "away, then it is trained again"
                )
        return found

    def frozen(self, item: Item) -> FrozenClassifier:
        """The classifier that an obfuscator is for, with its weights."""
        assert item.classifier is not None
        return load_classifier(self.path(self.plan.item(item.classifier)))

    def recipe(self, item: Item) -> ClassifierRecipe | ObfuscatorRecipe:
        """An item's recipe with its place in the lab filled in.

        Raises:
            RecipeError: the file is missing or wrong.
        """
        overrides = [*item.overrides, f"name={json.dumps(item.name)}"]
        for key, other in (("classifier", item.classifier), ("teacher", item.teacher)):
            if other is not None:
                overrides.append(f"{key}={json.dumps(str(self.path(self.plan.item(other))))}")
        found = load_recipe(Path(item.recipe), overrides)
        if not isinstance(found, ClassifierRecipe | ObfuscatorRecipe):
            raise RecipeError(f"{item.recipe} is of kind {found.kind!r}, which is none of the paper's networks")
        return found

    def make(self, item: Item, *, say: Callable[[str], None] = lambda line: None) -> None:
        """Trains an item, or goes on with it; nothing if it is done.

        Args:
            item: of the plan.
            say: is told a line for people.

        Raises:
            SfumatoError: see `sfumato.lab.training.train`.
            Interrupted: Ctrl-C or SIGTERM; the state was saved.
        """
        if self.state(item).name != "done":
            finish_training(self.recipe(item), self.run(item), say=say)

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

    def figures(self, item: Item) -> dict[str, Any]:
        """Return accuracies through an item's ONNX files, and its joint deobfuscator's errors, over all test images.

        What training measured in the same way on the same images is not measured again.
        """
        bundle = self.bundle(item)
        measured = bundle.provenance.to_json().get("data_sha256") or {}
        if measured.get("test") == self.test.sha256 and bundle.figures.test_images == len(self.test):
            return bundle.figures.to_json()
        if item.classifier is None:
            return evaluate_classifier(bundle, self.test).to_json()
        return evaluate_obfuscator(bundle, self.bundle(self.plan.item(item.classifier)), self.test).to_json()


def origin(bundle: Bundle) -> dict[str, Any]:
    """How a bundle was trained: epochs, seed, images, lambda, batch size, precision, on what, and how it went."""
    recipe, facts = bundle.recipe.to_json(), bundle.provenance.to_json()
    training = recipe.get("training") or {}
    return {
        "epochs": training.get("epochs"),
        "seed": training.get("seed"),
        "batch_size": training.get("batch_size"),
        "precision": facts.get("precision"),
        "history": facts.get("history"),
        "lambda": recipe.get("privacy_weight"),
        "train_images": facts.get("train_images"),
        "seconds": facts.get("training_seconds"),
        "device": facts.get("device") or (facts.get("machine") or {}).get("cpu"),
        "commit": facts.get("commit"),
    }
