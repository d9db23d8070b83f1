"""From a recipe to a task: networks and tasks take plain arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.artifacts.bundle import CLASSIFIER_WEIGHTS, DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.lab_files import find_lab_file, lab_file
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import BundleError, RecipeError
from sfumato.lab.classifiers import FrozenClassifier, load_classifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.models import (
    DECODERS,
    Normalize,
    Obfuscator,
    Sketcher,
    build_classifier,
    fold_norms,
    obfuscator_of,
    sketcher_of,
)
from sfumato.lab.models.classifiers import TRUNK, features_and_logits
from sfumato.lab.models.obfuscator import ObfuscatorTrunk
from sfumato.lab.models.rebuild import ObfuscatorNetRecipe, SketchNetRecipe, recipe_of
from sfumato.lab.training.adversaries import Attackers, attacker_to_restart, restart
from sfumato.lab.training.code_mixture import CodeMixture
from sfumato.lab.training.ensemble import Ensemble, Teachers
from sfumato.lab.training.images import class_means
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe import ClassifierRecipe, ObfuscatorRecipe, SketchRecipe
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

_PROBES = 2


def classifier_task(
    recipe: ClassifierRecipe,
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    teachers: Sequence[FrozenClassifier],
    *,
    bfloat16: bool = False,
) -> ClassifierTask:
    """Return the task that a classifier's recipe describes, with fresh weights, for images that are prepared like that.

    Raises:
        RecipeError: the teachers differ in classes or in the size of their images.
    """
    return ClassifierTask(
        build_classifier(recipe.architecture, len(labels)),
        normalize(preprocessing),
        label_smoothing=recipe.label_smoothing,
        teacher=_teacher(teachers),
        teacher_weight=recipe.teacher_weight,
        temperature=recipe.temperature,
        mixup=recipe.mixup,
        bfloat16=bfloat16,
        teacher_in_validation=not recipe.teacher_views,
    )


def _teacher(teachers: Sequence[FrozenClassifier]) -> nn.Module | None:
    """Return one or several classifiers as a teacher: images in [0, 1] to logits."""
    if not teachers:
        return None
    _check_alike(teachers[0], teachers[1:], "teacher")
    nets = [nn.Sequential(normalize(net.preprocessing), fold_norms(net.net)) for net in teachers]
    return nets[0] if len(nets) == 1 else Teachers(nets)


def obfuscation_task(
    recipe: ObfuscatorRecipe,
    frozen: FrozenClassifier,
    images: ImageSet,
    further: Sequence[FrozenClassifier] = (),
    *,
    bfloat16: bool = False,
) -> ObfuscationTask:
    """Return the task that an obfuscator's recipe describes, with fresh weights.

    It is for the classifier `frozen`, and for `further` ones, those of `transfer.ensemble`. The training images are of
    the size that these take; for those without labels see `labelled_by`.

    Raises:
        RecipeError: the recipe does not fit the images or the classifier.
    """
    height, width = images.images.shape[2:]
    if height % Obfuscator.size_multiple or width % Obfuscator.size_multiple:
        raise RecipeError(
            f"the obfuscator takes sides that are multiples of {Obfuscator.size_multiple}, got {(height, width)}"
        )
    if recipe.input.remove_frequencies >= min(height, width):
        raise RecipeError(
            f"input.remove_frequencies = {recipe.input.remove_frequencies} leaves nothing of images of "
            f"{height}x{width}: it must be smaller than their sides"
        )
    utility, bottleneck = recipe.utility, recipe.bottleneck
    if utility.feature_weight:
        _check_features(frozen)
    obfuscator = obfuscator_of(recipe)
    nets = [DECODERS[kind]() for kind in recipe.privacy.attackers]
    shape = obfuscator.code_channels, height // obfuscator.size_multiple, width // obfuscator.size_multiple
    return ObfuscationTask(
        obfuscator,
        Attackers(*nets) if len(nets) > 1 else next(iter(nets), None),
        fold_norms(frozen.net),
        normalize(frozen.preprocessing),
        privacy_weight=recipe.privacy_weight,
        label_weight=utility.label_weight,
        teacher_weight=utility.teacher_weight,
        feature_weight=utility.feature_weight,
        temperature=utility.temperature,
        class_means=class_means(images) if recipe.privacy.target == "class-mean" else None,
        rate_weight=bottleneck.rate_weight,
        entropy_weight=bottleneck.entropy_weight,
        mixture=CodeMixture(len(images.names), shape) if bottleneck.entropy_weight else None,
        ensemble=_ensemble(recipe, frozen, further, bfloat16=bfloat16),
        bfloat16=bfloat16,
    )


def sketch_task(
    recipe: SketchRecipe,
    frozen: FrozenClassifier,
    images: ImageSet,
    further: Sequence[FrozenClassifier],
    teachers: Sequence[FrozenClassifier] = (),
    *,
    bfloat16: bool,
) -> SketchTask:
    """Return the task that a sketch's recipe describes, with fresh weights; see `obfuscation_task`."""
    _check_alike(frozen, teachers, "teacher")
    height, width = images.images.shape[2:]
    try:
        sketcher = sketcher_of(recipe, height, width, classes=len(images.names))
    except ValueError as error:
        raise RecipeError(f"code_bits: {error}") from error
    return SketchTask(
        sketcher,
        fold_norms(frozen.net),
        normalize(frozen.preprocessing),
        teacher_weight=recipe.teacher_weight,
        temperature=recipe.temperature,
        decoded_share=recipe.decoded_share,
        ensemble=_ensemble(recipe, frozen, further, bfloat16=bfloat16),
        bfloat16=bfloat16,
        decoder_alone=recipe.learn == "decoder",
        teacher=_teacher(teachers),
        mixup=recipe.mixup,
        teacher_in_validation=not recipe.teacher_views,
    )


def _ensemble(
    recipe: ObfuscatorRecipe | SketchRecipe,
    frozen: FrozenClassifier,
    further: Sequence[FrozenClassifier],
    *,
    bfloat16: bool,
) -> Ensemble:
    """Return the further classifiers of an obfuscator, after a check of their classes and image sizes."""
    _check_alike(frozen, further, "transfer.ensemble")
    nets = [(normalize(other.preprocessing), fold_norms(other.net)) for other in further]
    return Ensemble(nets, diversity=recipe.transfer.diversity, noise=recipe.transfer.noise, bfloat16=bfloat16)


def _check_alike(first: FrozenClassifier, further: Sequence[FrozenClassifier], key: str) -> None:
    """Check that further classifiers, of that key of the recipe, have the classes and take the images of the first."""
    wanted = first.preprocessing
    for other in further:
        if other.labels != first.labels:
            raise RecipeError(
                f"{key}: {other.name} has other classes than {first.name}, or in another order "
                f"({', '.join(other.labels[:3])}, ... and {', '.join(first.labels[:3])}, ...)"
            )
        if other.labelling != first.labelling:
            raise RecipeError(f"{key}: {other.name} is {other.labelling}, {first.name} is {first.labelling}")
        size = other.preprocessing
        if (size.height, size.width) != (wanted.height, wanted.width):
            raise RecipeError(
                f"{key}: {other.name} takes images of {size.height}x{size.width}, {first.name} of "
                f"{wanted.height}x{wanted.width}"
            )


def begin_from(
    start: Bundle,
    recipe: ObfuscatorRecipe | SketchRecipe,
    task: ObfuscationTask | SketchTask,
    frozen: FrozenClassifier,
) -> None:
    """Give a task the weights of an obfuscator that was trained before, maybe for another classifier, or of a trunk.

    Those of a deobfuscator are taken too, if the lab has them.

    Raises:
        RecipeError: the bundle is of another kind, for other classes, or of another shape.
        BundleError: its weights are damaged.
    """
    if start.kind == "classifier":
        _begin_as_trunk(start, task)
        return
    made = SketchNetRecipe if isinstance(recipe, SketchRecipe) else ObfuscatorNetRecipe
    if not isinstance(recipe_of(start), made):
        raise RecipeError(
            f"{start.path} holds a {start.recipe.kind!r}; the recipe is for a {recipe.kind!r}: start from one of these"
        )
    if start.labels != frozen.labels:
        raise RecipeError(
            f"{start.path} was made for the classes {', '.join(start.labels[:3])}, ...; {frozen.name} has "
            f"{', '.join(frozen.labels[:3])}, ..., or another order"
        )
    try:
        weights = load_file(starting_weights(start))
        if isinstance(task, SketchTask):
            # Which codes have enough images is found out again, on these images.
            weights = {name: value for name, value in weights.items() if not name.startswith("kept_")}
            task.sketcher.load_state_dict(_with_fitting_decoder(weights, task.sketcher))
            return
        task.obfuscator.load_state_dict(weights)
        deobfuscator = find_lab_file(start, DEOBFUSCATOR_WEIGHTS)
        if deobfuscator is not None and len(task.attackers) == 1:
            task.attackers[0].load_state_dict(load_file(deobfuscator))
    except RuntimeError as error:
        raise RecipeError(
            f"the {recipe.kind} of {start.path} does not fit the recipe (another number of classes, size of images, "
            f"trunk, code_bits or attackers?): {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    except SafetensorError as error:
        raise BundleError(f"{start.path}: its weights cannot be read: {error}") from error


def _begin_as_trunk(start: Bundle, task: ObfuscationTask | SketchTask) -> None:
    """Give an obfuscator the weights of a classifier that is one but for its last bottleneck."""
    net = load_classifier(start.path).net if start.recipe.architecture == TRUNK else None
    if not isinstance(net, ObfuscatorTrunk) or isinstance(task, SketchTask):
        raise RecipeError(
            f"{start.path} holds a classifier: a sketch starts from a sketch; an obfuscator from an obfuscator, or "
            f'from a classifier with architecture = "{TRUNK}"'
        )
    prepared = start.preprocessing
    task.obfuscator.begin_as(net, torch.tensor(prepared.mean), torch.tensor(prepared.std))


def go_on_from(
    start: Bundle,
    recipe: ClassifierRecipe,
    task: ClassifierTask,
    names: tuple[str, ...],
    preprocessing: Preprocessing,
) -> None:
    """Give a classifier the weights of one that was trained before.

    Raises:
        RecipeError: the bundle holds another architecture, or one for other classes or images.
        BundleError: its weights are damaged.
    """
    found, wanted = start.recipe.architecture, recipe.architecture
    if start.kind != "classifier" or found != wanted:
        raise RecipeError(
            f"{start.path} holds a {found or start.recipe.kind!r}: a classifier's training goes on from a classifier "
            f'with architecture = "{wanted}"'
        )
    if start.labels != names or start.preprocessing != preprocessing:
        raise RecipeError(f"{start.path} is for other classes, or images of another size, mean or standard deviation")
    task.net.load_state_dict(load_classifier(start.path).net.state_dict())


def starting_weights(start: Bundle) -> Path:
    """Return the file of the weights that a training starts from."""
    return start.file(CLASSIFIER_WEIGHTS) if start.kind == "classifier" else lab_file(start, OBFUSCATOR_WEIGHTS)


def _with_fitting_decoder(weights: dict[str, Tensor], sketcher: Sketcher) -> dict[str, Tensor]:
    """Return a sketch's weights, with the decoder of the new one where either decodes to photographs."""
    if sketcher.photographs is None and not any(name.startswith("photographs.") for name in weights):
        return weights
    encoder = ("trunk.", "to_bits.")
    kept = {name: value for name, value in weights.items() if name.startswith(encoder)}
    return kept | {name: value for name, value in sketcher.state_dict().items() if not name.startswith(encoder)}


def restarted(recipe: ObfuscatorRecipe, task: ObfuscationTask, epoch: int) -> list[nn.Parameter]:
    """Restart the attacker whose turn it is after so many epochs, and return its parameters, if there is one."""
    attackers = task.attackers
    turn = attacker_to_restart(epoch, every=recipe.privacy.restart_epochs, attackers=len(attackers))
    if turn is None:
        return []
    restart(attackers[turn], DECODERS[recipe.privacy.attackers[turn]], seed=recipe.training.seed + epoch)
    if isinstance(task.deobfuscator, Attackers):
        task.deobfuscator.errors[turn] = torch.inf
    return list(attackers[turn].parameters())


@torch.no_grad()
def labelled_by(frozen: FrozenClassifier, images: ImageSet) -> ImageSet:
    """Return the images with the classifier's predictions as labels; their own labels are ignored."""
    net = frozen_module(frozen)
    logits = torch.cat([net(part.float() / 255) for part in torch.split(images.images, INFERENCE_BATCH)])
    labels = (logits >= 0).long() if frozen.labelling == "multi-label" else logits.argmax(dim=1)
    return replace(images, labels=labels, names=frozen.labels)


def normalize(preprocessing: Preprocessing) -> Normalize:
    """Return a classifier's preprocessing as a module: (N, 3, H, W) float32 in [0, 1] -> its input."""
    return Normalize(preprocessing.mean, preprocessing.std)


def frozen_module(frozen: FrozenClassifier) -> nn.Module:
    """Return a classifier with its preprocessing: (N, 3, H, W) float32 in [0, 1] -> logits; in evaluation mode."""
    return nn.Sequential(normalize(frozen.preprocessing), frozen.net).eval()


@torch.no_grad()
def _check_features(frozen: FrozenClassifier) -> None:
    probes = torch.randn(_PROBES, 3, frozen.preprocessing.height, frozen.preprocessing.width)
    error: Exception | None = None
    try:
        _, logits = features_and_logits(frozen.net, probes)
        if torch.allclose(logits, frozen.net(probes), atol=1e-4):
            return
    except Exception as raised:  # any network: whatever it raises, it is not built this way
        error = raised
    raise RecipeError(
        f"utility.feature_weight: the classifier {frozen.name} does not expose its features (`features` and `head`, "
        "whose composition is the classifier); set it to 0, or use utility.teacher_weight"
    ) from error
