"""From a method's name to a measured bundle."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.provenance import provenance
from sfumato.errors import TrainingError
from sfumato.lab.baselines.bundles import write_baseline, write_retrained
from sfumato.lab.baselines.method import Method, Progress, Training, silent
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.models import Normalize

CHECK_IMAGES = 64
FEW_EPOCHS = 10
"""A run of fewer epochs says in its recipe that it is a short one."""


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
    """Fits a method, writes its bundle and measures it.

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
    recipe: dict[str, Any] = {"data": train.source}
    facts: dict[str, Any] = {
        "seed": method.seed,
        "test_images": len(test),
        "data": train.source,
        "data_sha256": {"train": train.sha256, "test": test.sha256},
    }
    if method.learns:
        recipe["train_images"] = facts["train_images"] = len(train)
    if method.iterates:
        recipe["epochs"] = epochs
        if epochs < FEW_EPOCHS:
            recipe["note"] = f"A short run of {epochs:g} epochs, as a CPU affords: more training improves it."
    normalize = Normalize(classifier.preprocessing.mean, classifier.preprocessing.std)
    started = time.monotonic()
    net = method.fit(Training(train.images, train.labels, frozen.net, normalize, epochs=epochs, progress=progress))
    facts["training_seconds"] = round(time.monotonic() - started, 1)
    check = test.images[:CHECK_IMAGES].float() / 255
    if net is not frozen.net:
        whole = {"method": name, "strength": method.strength, "seed": method.seed, **recipe}
        classifier = write_retrained(folder / "classifier", net, given=classifier, images_for_check=check, recipe=whole)
        figures = classifier.figures.updated(**evaluate_classifier(classifier, test))
        classifier = replace(classifier, figures=figures, provenance=provenance(**facts)).save()
        frozen = load_classifier(classifier.path)
    bundle = write_baseline(
        folder / "bundle", method, name_of_method=name, classifier=frozen, images_for_check=check, recipe=recipe
    )
    figures = bundle.figures.updated(**evaluate_obfuscator(bundle, classifier, test))
    return replace(bundle, figures=figures, provenance=provenance(**facts)).save()
