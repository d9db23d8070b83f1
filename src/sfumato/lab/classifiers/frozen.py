"""Load a frozen classifier from a bundle, for training and audits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sfumato.artifacts.bundle import CLASSIFIER_PROGRAM, CLASSIFIER_WEIGHTS, Bundle, Preprocessing
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers.exported_programs import load_program
from sfumato.lab.models import build_classifier

IMPORTED = "imported"
"""The kind of the recipe of an imported classifier."""


@dataclass(frozen=True)
class FrozenClassifier:
    """A pretrained classifier that must not change.

    Attributes:
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes); evaluation mode, no gradients.
        name: its name at a server.
        labels: one name per class, in the order of the logits.
        preprocessing: how an image becomes its input.
        fingerprint: of its served ONNX file.
    """

    net: nn.Module
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str

    def obfuscator(self, folder: Path, recipe: RecipeRecord) -> Bundle:
        """Return the bundle of an obfuscator for it, whose files lie in the folder; not saved yet."""
        return Bundle(
            path=folder,
            kind="obfuscator",
            name=self.name,
            labels=self.labels,
            preprocessing=self.preprocessing,
            classifier_fingerprint=self.fingerprint,
            recipe=recipe,
        )


def is_imported(bundle: Bundle) -> bool:
    """Return whether a classifier's bundle was made of a classifier from elsewhere; earlier versions say "adopted"."""
    return bundle.recipe.kind in (IMPORTED, "adopted")


def trains_through(bundle: Bundle) -> bool:
    """Return whether gradients can pass through a classifier's bundle, which otherwise can only be served."""
    return CLASSIFIER_PROGRAM in bundle.files or CLASSIFIER_WEIGHTS in bundle.files


def load_classifier(path: Path) -> FrozenClassifier:
    """Load the classifier of a bundle so that gradients pass through it.

    Raises:
        BundleError: not a classifier's bundle, one that can only be served, a program that cannot be used, or
            weights that do not fit the architecture.
    """
    bundle = Bundle.load(path, kind="classifier")
    if not trains_through(bundle) and is_imported(bundle):
        raise BundleError(
            f"{path} holds an ONNX file alone: it can be served, measured and audited, but no gradient passes through "
            "it, so nothing can be trained for it; import the network that the file was exported from "
            "(`sfumato import --help`)"
        )
    architecture = bundle.recipe.architecture
    try:
        if CLASSIFIER_PROGRAM in bundle.files:
            net: nn.Module = load_program(bundle.file(CLASSIFIER_PROGRAM))
        else:
            net = build_classifier(str(architecture), len(bundle.labels))
            net.load_state_dict(load_file(bundle.file(CLASSIFIER_WEIGHTS)))
    except ClassifierError as error:
        raise BundleError(str(error)) from error
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{bundle.path}: weights do not fit architecture {architecture!r}: {error}") from error
    return FrozenClassifier(
        net=net.eval().requires_grad_(False),
        name=bundle.name,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        fingerprint=bundle.classifier_fingerprint,
    )
