"""Where frozen classifiers come from: so far, bundles that our own training wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sfumato.bundle import CLASSIFIER_WEIGHTS, Bundle, Preprocessing
from sfumato.errors import BundleError
from sfumato.nets import build_classifier


@dataclass(frozen=True)
class FrozenClassifier:
    """A pretrained classifier that must not change.

    Attributes:
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes); evaluation mode, no gradients.
        name: what a server calls it.
        labels: one name per class, in the order of the logits.
        preprocessing: how a picture becomes its input.
        fingerprint: of its served ONNX file.
    """

    net: nn.Module
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str


def load_classifier(path: Path) -> FrozenClassifier:
    """Loads the classifier of a bundle with its weights.

    Raises:
        BundleError: not a classifier's bundle, without weights, or weights that do not fit the architecture.
    """
    bundle = Bundle.load(path, kind="classifier")
    architecture = bundle.recipe.get("architecture")
    try:
        net = build_classifier(str(architecture), len(bundle.labels))
        net.load_state_dict(load_file(bundle.file(CLASSIFIER_WEIGHTS)))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{path}: weights do not fit architecture {architecture!r}: {error}") from error
    return FrozenClassifier(
        net=net.eval().requires_grad_(False),
        name=bundle.name,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        fingerprint=bundle.classifier_fingerprint,
    )
