"""Write baselines as bundles like any obfuscator's, and load them with gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.artifacts.bundle import (
    BASELINE,
    CLASSIFIER_ONNX,
    CLASSIFIER_WEIGHTS,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
    Preprocessing,
    fingerprint,
)
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import BundleError, ResultsError, TrainingError
from sfumato.lab.baselines.method import Method, NoisyMethod
from sfumato.lab.baselines.registry import build
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.evaluation.results import Result
from sfumato.lab.export.onnx import export_onnx, renew, save_weights
from sfumato.lab.models import Normalize


@dataclass(frozen=True)
class BaselineRecipe(Result):
    """How a baseline was made; with its kind, the recipe of its bundle.

    Attributes:
        method: its name in `METHODS`.
        seed: see `Method`.
        strength: see `Method`; None if it has none.
        data: source of the images.
        train_images: how many it learned from; None if it does not learn.
        epochs: for those that iterate.
        note: for users.
        kind: of the recipe.
    """

    method: str
    seed: int
    strength: float | None = None
    data: str | None = None
    train_images: int | None = None
    epochs: float | None = None
    note: str | None = None
    kind: Literal["baseline"] = "baseline"


_RUNS = 64


class Payload(nn.Module):
    """A method followed by the classifier's normalisation: from an image to the payload.

    Args:
        method: the baseline.
        preprocessing: of its classifier.
    """

    def __init__(self, method: Method, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.method = method
        self.normalize = Normalize(preprocessing.mean, preprocessing.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's input for (N, 3, H, W) float32 in [0, 1], the same shape."""
        out: Tensor = self.normalize(self.method(images))
        return out


class NoisyPayload(Payload):
    """As `Payload`, for a stochastic method; `noise_kind`, `mean` and `noise_std` are of the payload."""

    def __init__(self, method: NoisyMethod, preprocessing: Preprocessing) -> None:
        super().__init__(method, preprocessing)
        self.noise_kind = method.noise_kind
        self._noisy = (method,)  # a tuple, so that the method is not registered twice

    def mean(self, images: Tensor) -> Tensor:
        """Return the payload without the noise, for (N, 3, H, W) float in [0, 1]; differentiable."""
        out: Tensor = self.normalize(self._noisy[0].mean(images))
        return out

    def noise_std(self) -> Tensor:
        """Return the standard deviation of each number's noise, (3, H, W), in the scale of the classifier's input."""
        std: Tensor = self._noisy[0].noise_std() / self.normalize.std[0]
        return std


def as_payload(method: Method, preprocessing: Preprocessing) -> Payload:
    """Return a copy of the method followed by the normalisation, frozen and in evaluation mode."""
    own = copy.deepcopy(method).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    payload = NoisyPayload(own, preprocessing) if isinstance(own, NoisyMethod) else Payload(own, preprocessing)
    return payload.eval().requires_grad_(False)


def write_baseline(
    folder: Path,
    method: Method,
    *,
    recipe: BaselineRecipe,
    classifier: FrozenClassifier,
    images_for_check: Tensor,
) -> Bundle:
    """Write a baseline's bundle, without figures and provenance.

    Args:
        folder: is created, or replaced.
        method: fitted.
        recipe: of the method.
        classifier: that it is for.
        images_for_check: (N, 3, H, W) float32 in [0, 1], real ones, N at least 2.

    Raises:
        TrainingError: ONNX Runtime's outputs differ from torch's, or the disk refuses.
    """
    renew(folder)
    save_weights(method, folder / OBFUSCATOR_WEIGHTS)
    payload = as_payload(method, classifier.preprocessing)
    onnx = folder / OBFUSCATOR_ONNX
    compare = not method.stochastic
    export_onnx(payload, onnx, images_for_check, input_name="image", output_name="obfuscated", compare=compare)
    if isinstance(payload, NoisyPayload):
        _check_noise(onnx, payload, images_for_check[:8])
    return Bundle(
        path=folder,
        kind="obfuscator",
        name=classifier.name,
        labels=classifier.labels,
        preprocessing=classifier.preprocessing,
        classifier_fingerprint=classifier.fingerprint,
        recipe=RecipeRecord.from_json(recipe.to_json()),
    ).save()


def write_retrained(
    folder: Path, net: nn.Module, *, origin: Bundle, images_for_check: Tensor, recipe: BaselineRecipe
) -> Bundle:
    """Write the bundle of a classifier that a method retrained.

    Args:
        folder: is created, or replaced.
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes); of `origin`'s architecture.
        origin: the bundle that it started from.
        images_for_check: (N, 3, H, W) float32 in [0, 1], real ones, N at least 2.
        recipe: of the baseline that it was trained with.

    Raises:
        TrainingError: ONNX Runtime's outputs differ from torch's, or the disk refuses.
    """
    renew(folder)
    save_weights(net, folder / CLASSIFIER_WEIGHTS)
    inputs = Normalize(origin.preprocessing.mean, origin.preprocessing.std)(images_for_check)
    export_onnx(net, folder / CLASSIFIER_ONNX, inputs, input_name="input", output_name="logits")
    return Bundle(
        path=folder,
        kind="classifier",
        name=f"{origin.name}-retrained",
        labels=origin.labels,
        preprocessing=origin.preprocessing,
        classifier_fingerprint=fingerprint(folder / CLASSIFIER_ONNX),
        recipe=origin.recipe.updated(retrained={"from": origin.classifier_fingerprint, **recipe.to_json()}),
    ).save()


def load_module(bundle: Bundle, weights: str = OBFUSCATOR_WEIGHTS) -> Payload:
    """Load a baseline from its bundle in torch: differentiable, in evaluation mode.

    Args:
        bundle: of kind "obfuscator", written by `write_baseline`.
        weights: the name of their file in the bundle.

    Returns:
        Images (N, 3, H, W) float32 in [0, 1] -> the payload. A stochastic one adds fresh noise at each call
        and has `noise_kind`, `mean` and `noise_std`.

    Raises:
        BundleError: not a baseline's bundle, or its weights do not fit.
    """
    method = _built(bundle, seed=None)
    try:
        method.load_state_dict(load_file(bundle.file(weights)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{bundle.path}: weights do not fit {type(method).__name__}: {error}") from error
    return as_payload(method, bundle.preprocessing)


def refit(bundle: Bundle, seed: int) -> Payload | None:
    """Rebuild a baseline with another seed, as an attacker does that knows the recipe but not the key.

    Returns:
        As `load_module`; None for a method that learns, which needs its training images.

    Raises:
        BundleError: not a baseline's bundle.
    """
    method = _built(bundle, seed=seed)
    return None if method.learns else as_payload(method, bundle.preprocessing)


def _built(bundle: Bundle, seed: int | None) -> Method:
    recipe, size = bundle.recipe.to_json(), bundle.preprocessing
    if recipe.get("kind") != BASELINE:
        raise BundleError(f"{bundle.path} is no baseline: its recipe has kind {recipe.get('kind')!r}")
    try:
        made = BaselineRecipe.from_json(recipe)
        seed = made.seed if seed is None else seed
        return build(made.method, size.height, size.width, strength=made.strength, seed=seed)
    except (ResultsError, TrainingError) as error:
        raise BundleError(f"{bundle.path}: the recipe does not make a baseline: {error}") from error


def _check_noise(path: Path, payload: NoisyPayload, images: Tensor) -> None:
    """Check that the file's noise is fresh, centred on the mean, and of the same size as torch's."""
    function = OnnxFunction(path)
    runs = np.stack([function(images.numpy()) for _ in range(_RUNS)])
    std = payload.noise_std().numpy()
    noise = (runs - payload.mean(images).numpy()) / np.maximum(std, 1e-6)
    noisy = noise[:, :, std > 1e-6]
    still = np.abs(noise[:, :, std <= 1e-6]).max(initial=0.0) * 1e-6
    count = noisy.shape[0] * noisy.shape[1]
    drift = float(np.abs(noisy.mean(axis=(0, 1))).max(initial=0.0)) * count**0.5
    spread = float(noisy.std()) if noisy.size else 1.0
    if (runs[0] == runs[1]).all() or drift > 8 or abs(spread - 1) > 0.05 or still > 1e-4:
        raise TrainingError(
            f"{path.name}: ONNX Runtime's noise differs from torch's: mean off by {drift:.1f} standard errors, "
            f"spread {spread:.3f} instead of 1"
        )
