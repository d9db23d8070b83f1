"""Fit a baseline by its method's name, and write a measured bundle."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Figures
from sfumato.errors import TrainingError
from sfumato.lab.baselines.bundles import BaselineRecipe, write_baseline, write_retrained
from sfumato.lab.baselines.method import Method, Training
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.models import Normalize
from sfumato.progress import Progress, silent

CHECK_IMAGES = 64
FEW_EPOCHS = 10
"""A run of fewer epochs is recorded as a short one in its recipe."""


def make(
    method: Method,
    name: str,
    folder: Path,
    classifier: Bundle,
    train: ImageSet,
    test: ImageSet,
    *,
    epochs: float = 1.0,
    progress: Progress = silent,
) -> Bundle:
    """Fit a method, write its bundle and measure it.

    Nothing is written before the method is fitted.

    Args:
        method: freshly built, of the size that the classifier takes.
        name: its name in `METHODS`.
        folder: gets `bundle/`, and `classifier/` if the method retrains the classifier.
        classifier: that it is for.
        train: images to learn from.
        test: images to measure accuracy on.
        epochs: for those that iterate.
        progress: see `Progress`.

    Raises:
        TrainingError: too few test images, or classes that the classifier does not know.
        SfumatoError: training, export or measuring failed, each with its own class.
        Interrupted: Ctrl-C or SIGTERM.
    """
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    if classes > len(classifier.labels):
        raise TrainingError(f"the images have {classes} classes, the classifier knows {len(classifier.labels)}")
    if len(test) < 2:
        raise TrainingError(f"at least 2 test images are needed to check the export, got {len(test)}")
    frozen = load_classifier(classifier.path)
    short = f"A short run of {epochs:g} epochs, for a CPU: more training improves it."
    recipe = BaselineRecipe(
        name,
        method.seed,
        method.strength,
        data=train.source,
        train_images=len(train) if method.learns else None,
        epochs=epochs if method.iterates else None,
        note=short if method.iterates and epochs < FEW_EPOCHS else None,
    )
    normalize = Normalize(classifier.preprocessing.mean, classifier.preprocessing.std)
    started = time.monotonic()
    net = method.fit(Training(train.images, train.labels, frozen.net, normalize, epochs=epochs, progress=progress))
    facts = provenance(
        seed=method.seed,
        test_images=len(test),
        data=train.source,
        data_sha256={"train": train.sha256, "test": test.sha256},
        training_seconds=round(time.monotonic() - started, 1),
        **({"train_images": len(train)} if method.learns else {}),
    )
    check = test.images[:CHECK_IMAGES].float() / 255
    if net is not frozen.net:
        retrained = folder / "classifier"
        classifier = write_retrained(retrained, net, origin=classifier, images_for_check=check, recipe=recipe)
        measured = evaluate_classifier(classifier, test, progress=progress)
        classifier = replace(classifier, figures=Figures.from_json(measured.to_json()), provenance=facts).save()
        frozen = load_classifier(classifier.path)
    bundle = write_baseline(folder / "bundle", method, recipe=recipe, classifier=frozen, images_for_check=check)
    figures = evaluate_obfuscator(bundle, classifier, test, progress=progress)
    return replace(bundle, figures=Figures.from_json(figures.to_json()), provenance=facts).save()
