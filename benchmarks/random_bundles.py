"""Bundles with random weights, for what benchmarks time: weights do not change the time."""

from __future__ import annotations

from pathlib import Path

import torch

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import RecipeRecord
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.data import ImageSet
from sfumato.lab.models import Normalize, Obfuscator, Sketcher, build_classifier, class_bits
from sfumato.lab.training.export import write_classifier_bundle, write_obfuscator_bundle, write_sketch_bundle
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_IMAGES = 4


def classifier(folder: Path, architecture: str, *, side: int = 32, classes: int = 10) -> Bundle:
    """A classifier's bundle."""
    net = build_classifier(architecture, classes).eval()
    return write_classifier_bundle(
        folder,
        ClassifierTask(net, Normalize(MEAN, STD)),
        _images(side),
        name=architecture,
        labels=_labels(classes),
        preprocessing=Preprocessing(side, side, MEAN, STD),
        recipe=RecipeRecord(kind="classifier", architecture=architecture),
    )


def obfuscator(folder: Path, served: Bundle) -> Bundle:
    """The paper's obfuscator for a classifier's bundle."""
    frozen = _frozen(served)
    task = ObfuscationTask(Obfuscator(), None, frozen.net, Normalize(MEAN, STD), privacy_weight=1.0).eval()
    return write_obfuscator_bundle(
        folder, task, _images(served.preprocessing.height), classifier=frozen, recipe=RecipeRecord(kind="obfuscator")
    )


def sketch(folder: Path, served: Bundle) -> Bundle:
    """A sketch of the kind that is shipped, with its gate and its decoder, for a classifier's bundle."""
    frozen, side, classes = _frozen(served), served.preprocessing.height, len(served.labels)
    sketcher = Sketcher(side, side, classes=classes, bits=max(8, class_bits(classes)))
    task = SketchTask(sketcher, frozen.net, Normalize(MEAN, STD), teacher_weight=0.9, temperature=4.0).eval()
    few = ImageSet((_images(side) * 255).to(torch.uint8), torch.arange(_IMAGES) % classes, served.labels, "random", "")
    return write_sketch_bundle(
        folder,
        task,
        _images(side),
        classifier=frozen,
        recipe=RecipeRecord(kind="sketch"),
        known=few,
        held_out=few,
        offload_rate=0.5,
    )


def random_set(count: int, side: int, labels: tuple[str, ...]) -> ImageSet:
    """Return images of noise with classes."""
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.arange(count) % len(labels), labels, "random", "")


def blocks(images: torch.Tensor) -> torch.Tensor:
    """An obfuscation that costs nothing: each pixel is the mean of 4 x 4."""
    return torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 4), scale_factor=4)


def _frozen(served: Bundle) -> FrozenClassifier:
    net = build_classifier(str(served.recipe.architecture), len(served.labels)).eval().requires_grad_(False)
    return FrozenClassifier(net, served.name, served.labels, served.preprocessing, served.classifier_fingerprint)


def _images(side: int) -> torch.Tensor:
    return torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))


def _labels(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(classes))
