"""The baselines by name: fit them, measure them, write them as bundles, and load them with gradients."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
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
)
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.lab_files import lab_file
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Figures, RecipeRecord
from sfumato.errors import BundleError, ResultsError, TrainingError
from sfumato.lab.baselines.encoders import Joint, MaxEntropy, NoPeek
from sfumato.lab.baselines.learned_noise import Cloak, Shredder
from sfumato.lab.baselines.method import Method, NoisyMethod, Training
from sfumato.lab.baselines.pca import PrincipalComponents
from sfumato.lab.baselines.public_photo import PublicPhoto
from sfumato.lab.baselines.scramble import ScrambleBlocks, ScramblePixels
from sfumato.lab.baselines.simple import Blur, BlurFace, Downsample, Identity, Noise, Pixelate
from sfumato.lab.classifiers import FrozenClassifier, load_classifier
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import evaluate_classifier, evaluate_obfuscator
from sfumato.lab.evaluation.results import Result
from sfumato.lab.export.onnx import export_onnx, renew, save_weights
from sfumato.lab.models import Normalize
from sfumato.progress import Progress, silent

METHODS: dict[str, type[Method]] = {
    "identity": Identity,
    "downsample": Downsample,
    "blur": Blur,
    "blur-face": BlurFace,
    "pixelate": Pixelate,
    "scramble-pixels": ScramblePixels,
    "scramble-blocks": ScrambleBlocks,
    "noise": Noise,
    "pca": PrincipalComponents,
    "shredder": Shredder,
    "cloak": Cloak,
    "nopeek": NoPeek,
    "max-entropy": MaxEntropy,
    "joint": Joint,
    "public-photo": PublicPhoto,
}
_FORMER_NAMES = {"stand-in": "public-photo"}
"""In bundles and recipes of earlier versions."""


def build(name: str, height: int, width: int, *, strength: float | None = None, seed: int = 0) -> Method:
    """Build a baseline by its name, also that of an earlier version; see `Method`.

    Raises:
        TrainingError: an unknown name, or a strength or size that the method does not take.
    """
    name = _FORMER_NAMES.get(name, name)
    if name not in METHODS:
        raise TrainingError(f"no baseline is called {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name](height, width, strength=strength, seed=seed)


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


CHECK_IMAGES = 64
FEW_EPOCHS = 10
"""A run of fewer epochs is recorded as a short one in its recipe."""
_RUNS = 64


class Payload(nn.Module):
    """A method followed by its classifier's normalisation: (N, 3, H, W) float32 in [0, 1] -> the classifier's input."""

    def __init__(self, method: Method, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.method = method
        self.normalize = Normalize(preprocessing.mean, preprocessing.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the payload, of the images' shape."""
        out: Tensor = self.normalize(self.method(images))
        return out


class NoisyPayload(Payload):
    """As `Payload`, for a stochastic method; `noise_kind`, `mean` and `noise_std` are of the payload."""

    method: NoisyMethod

    def __init__(self, method: NoisyMethod, preprocessing: Preprocessing) -> None:
        super().__init__(method, preprocessing)
        self.noise_kind = method.noise_kind

    def mean(self, images: Tensor) -> Tensor:
        """Return the payload without the noise, for (N, 3, H, W) float in [0, 1]; differentiable."""
        out: Tensor = self.normalize(self.method.mean(images))
        return out

    def noise_std(self) -> Tensor:
        """Return the standard deviation of each number's noise, (3, H, W), in the scale of the classifier's input."""
        std: Tensor = self.method.noise_std() / self.normalize.std[0]
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
    """Write a fitted method's bundle, without figures and provenance.

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
    return classifier.obfuscator(folder, RecipeRecord.from_json(recipe.to_json())).save()


def write_retrained(
    folder: Path, net: nn.Module, *, origin: Bundle, images_for_check: Tensor, recipe: BaselineRecipe
) -> Bundle:
    """Write the bundle of a classifier that a method retrained, of `origin`'s architecture; see `write_baseline`."""
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

    Returns:
        A `Payload`; of a stochastic method a `NoisyPayload`, which adds fresh noise at each call.

    Raises:
        BundleError: not a baseline's bundle, or its weights do not fit.
    """
    method = _built(bundle, seed=None)
    try:
        method.load_state_dict(load_file(lab_file(bundle, weights)))
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
    """Fit a method, write its bundle and measure it; nothing is written before the method is fitted.

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
    recipe = _recipe(method, name, train, epochs)
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


def _recipe(method: Method, name: str, train: ImageSet, epochs: float) -> BaselineRecipe:
    short = f"A short run of {epochs:g} epochs, for a CPU: more training improves it."
    return BaselineRecipe(
        name,
        method.seed,
        method.strength,
        data=train.source,
        train_images=len(train) if method.learns else None,
        epochs=epochs if method.iterates else None,
        note=short if method.iterates and epochs < FEW_EPOCHS else None,
    )
