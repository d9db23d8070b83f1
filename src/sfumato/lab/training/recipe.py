"""Recipes: the contents of a TOML file, validated. The code that does the work takes plain arguments instead."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from sfumato.artifacts.versions import upgraded
from sfumato.errors import RecipeError
from sfumato.lab.data import Augmentation
from sfumato.lab.data.image_set import Half
from sfumato.lab.models.precision import Wanted
from sfumato.lab.models.rebuild import ObfuscatorNetRecipe, SketchNetRecipe, Strict

_MULTI_LABEL = 'Import a multi-label classifier (`sfumato import --multi-label`), and train kind = "obfuscator" for it'
_WHOLE_IMAGES = "training.small_epochs is for classifiers alone; leave it out"
Architecture = Literal[
    "resnet20",
    "resnet-local",
    "resnet18",
    "resnet18-imagenet",
    "resnet50",
    "vgg7",
    "vgg19",
    "googlenet",
    "convmixer",
    "device-nano",
    "device-paper",
    "device-large",
]
"""Names from `sfumato.lab.models.CLASSIFIERS`."""


class DataRecipe(Strict):
    """The images.

    Attributes:
        source: `cifar10`, `faces`, a local folder, a CSV file of paths and classes, or a hub id (`owner/name`, or
            `owner/name:configuration`).
        size: (height, width) in pixels that images are fitted to; needed where they differ in size.
        image_column: the column of the images, if its type does not tell.
        label_column: the column of the classes, if its type or name does not tell.
        label_columns: the columns of multi-label data instead, one for each class of the classifier, with 1 where an
            image has it, and 0. Of obfuscators for multi-label classifiers.
        allow_outside: read images outside the folder of a CSV file.
        stream: decode training images as they are needed, if they do not fit the memory; see `sfumato.lab.data.Stream`.
        train_images: use only the first so many training images; of a stream, so many in each epoch.
        test_images: use only the first so many test images; required for a stream, as they are kept in memory.
        half: use only this half of the training images; they are halved at random, always in the same way. Obfuscators
            trained on one half each are references for each other in membership inference.
        flip: mirror training images at random.
        crop_padding: shift training images by up to so many pixels.
        zoom: train on random crops of at least this share of an image's area, resized to the whole; 1 or nothing for
            none.
        cutout: side in pixels of a square at a random place that is painted grey in each training image; 0 for none.
    """

    source: str = "cifar10"
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_columns: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    allow_outside: bool = False
    stream: bool = False
    train_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    half: Half | None = None
    flip: bool = True
    crop_padding: int = Field(default=0, ge=0, le=16)
    zoom: float | None = Field(default=None, gt=0, le=1)
    cutout: int = Field(default=0, ge=0)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(self.flip, self.crop_padding, self.zoom, self.cutout)

    @model_validator(mode="after")
    def _is_usable(self) -> DataRecipe:
        if self.zoom is not None and self.zoom < 1 and self.crop_padding:
            raise ValueError("zoom and crop_padding are two ways to crop; set one of them alone")
        if self.label_columns and len(set(self.label_columns)) < len(self.label_columns):
            raise ValueError("label_columns names a column twice")
        if self.label_columns and self.label_column:
            raise ValueError(
                "label_column is for one class per image, label_columns for several; set one of them alone"
            )
        if self.label_columns and self.stream:
            raise ValueError("label_columns: a stream has one class per image; leave stream out")
        if self.stream and self.size is None:
            raise ValueError("stream needs size: the size that images are fitted to as they come")
        if self.stream and self.test_images is None:
            raise ValueError("stream needs test_images: so many test images are kept in memory")
        if self.stream and self.half is not None:
            raise ValueError("half needs all training images at once, which a stream has not; leave out one of the two")
        if self.stream and self.source in ("cifar10", "faces", "faces-correlated"):
            raise ValueError(f"{self.source} fits the memory, and is read from there; leave stream out")
        return self


class TrainingRecipe(Strict):
    """How the weights are found.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes together.
        seed: of weights, order and augmentation.
        optimizer: "adam"; "sgd" with Nesterov momentum 0.9; or "muon", which takes a fraction of the epochs where dense
            convolutions are followed by batch norms, see `sfumato.lab.training.muon`.
        learning_rate: the highest one.
        weight_decay: L2 penalty.
        schedule: "constant"; "step" divides by 10 every `step_epochs`; "one-cycle" rises and falls once.
        step_epochs: for "step".
        warmup: for "one-cycle", the share of the steps that rise.
        precision: "auto" computes in bfloat16 where this machine is faster at it, and in float32 otherwise; "32-true"
            and "bf16-mixed", as Lightning Fabric names them, use one of them throughout.
        channels_last: keep activations in NHWC order, which is faster on most machines.
        compile: fuse operations with `torch.compile` first. It takes minutes, which did not pay on the CPUs tried.
        half_weights: round the trained weights to half precision before they are measured and written, to halve the
            files.
        weight_average: validate and keep an exponential moving average of the weights; the share of its former value
            that is kept at each step, such as 0.999, less in the first steps. 0 for the last weights.
        small_epochs: train the first so many epochs on images of three quarters of their height and width, in about
            half the time. Of classifiers whose convolutions end in a global mean.
        int8_epochs: train the last so many epochs with convolutions simulated in 8-bit integers, so that an export to
            them loses little accuracy. Batch norms stay as they are then. Of classifiers and sketches.
        validate_every: epochs between validations (the last epoch always ends with one).
    """

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=2)
    seed: int = 0
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "step", "one-cycle"] = "step"
    step_epochs: int = Field(default=30, ge=1)
    warmup: float = Field(default=0.2, gt=0, lt=1)
    precision: Wanted = "auto"
    channels_last: bool = True
    compile: bool = False
    half_weights: bool = False
    weight_average: float = Field(default=0.0, ge=0, lt=1)
    small_epochs: int = Field(default=0, ge=0)
    int8_epochs: int = Field(default=0, ge=0)
    validate_every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _is_usable(self) -> TrainingRecipe:
        if self.int8_epochs >= self.epochs:
            raise ValueError(
                f"int8_epochs = {self.int8_epochs} are the last of the {self.epochs} epochs and must be fewer: batch "
                "norms learn what to normalise before them"
            )
        if self.small_epochs and self.small_epochs >= self.epochs:
            raise ValueError(
                f"small_epochs = {self.small_epochs} are the first of the {self.epochs} epochs and must be fewer: what "
                "is trained on small images alone predicts others badly"
            )
        if self.int8_epochs and self.compile:
            raise ValueError("int8_epochs cannot be compiled; leave out one of the two")
        return self


class _Named(Strict):
    """What every recipe has.

    Attributes:
        name: of the result, and of its folder by default.
        note: for users of the result; goes into the bundle.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()


class _Taught(_Named):
    """What recipes of classifiers and sketches have, which learn from labels and a teacher.

    Attributes:
        teacher: a classifier to learn from, named as an obfuscator's `classifier` is, or a list of several, whose mean
            logits count. A sketch learns from its `classifier` if there is none.
        teacher_weight: share of the teacher's predictions in the loss, the labels get the rest; only with a teacher. At
            1 the training images need no labels.
        temperature: that the teacher's predictions are softened with; only with a teacher. The default is the upper
            end of 2.5 to 4, the range that Hinton et al. 2015, section 3, find best for small networks.
        mixup: mix each training image with another one, in shares from a beta distribution with this parameter, such as
            0.2 or 1; 0 for none. The teacher sees the mixture, and the labels are mixed alike.
        teacher_views: fixed views (crops, flips, squares) of each training image: the teacher is computed once for each
            of them, and its predictions are kept; 0 for new views in each epoch, with the teacher in every step. See
            `sfumato.lab.training.teacher_views`.
    """

    teacher: str | tuple[str, ...] | None = None
    teacher_weight: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    mixup: float = Field(default=0.0, ge=0)
    teacher_views: int = Field(default=0, ge=0)

    @field_validator("teacher", mode="before")
    @classmethod
    def _is_named(cls, given: object) -> object:
        several = isinstance(given, list | tuple) and given and all(isinstance(name, str) for name in given)
        if given is None or isinstance(given, str) or several:
            return given
        raise ValueError(f"expected a classifier, or a list of some, got {given!r:.60}")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers' names, none, one or several."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    @model_validator(mode="after")
    def _has_fixed_views(self) -> Self:
        reasons = (
            (self.mixup, "mixup", "the teacher's predictions on mixtures are not those on the images"),
            (self.data.stream, "data.stream", "a stream has no fixed images to keep predictions of"),
            (self.training.small_epochs, "training.small_epochs", "views of another size have other predictions"),
        )
        for wanted, key, reason in reasons:
            if self.teacher_views and wanted:
                raise ValueError(f"teacher_views cannot be had with {key}: {reason}; leave out one of the two")
        return self


class ClassifierRecipe(_Taught):
    """A classifier of the zoo, trained on plain images.

    Attributes:
        architecture: a name from `sfumato.lab.models.CLASSIFIERS`.
        label_smoothing: of the cross-entropy.
    """

    kind: Literal["classifier"]
    architecture: Architecture
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _is_usable(self) -> ClassifierRecipe:
        if self.data.label_columns:
            raise ValueError(f"data.label_columns: classifiers trained here have one class per image. {_MULTI_LABEL}")
        if self.training.small_epochs and self.architecture == "vgg19":
            raise ValueError("training.small_epochs: vgg19 halves images until one pixel is left; leave it out")
        if self.teacher_views and not self.teachers:
            raise ValueError("teacher_views are a teacher's; name it in teacher, or leave them out")
        return self


class UtilityRecipe(Strict):
    """The target of the frozen classifier's predictions on obfuscated images; the labels get the remaining share.

    Where the labels' share is 0, the training images need no labels: the classifier's own predictions replace them.

    Attributes:
        teacher_weight: share of the classifier's predictions on the plain images.
        feature_weight: share of its features.
        temperature: that predictions are softened with; only with `teacher_weight`.
    """

    teacher_weight: float = Field(default=0.0, ge=0, le=1)
    feature_weight: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)

    @property
    def label_weight(self) -> float:
        """Share of the labels; exactly 0 where the others take all."""
        rest = 1 - self.teacher_weight - self.feature_weight
        return rest if rest > 1e-9 else 0.0

    @model_validator(mode="after")
    def _is_usable(self) -> UtilityRecipe:
        if self.teacher_weight + self.feature_weight > 1 + 1e-9:
            raise ValueError(
                "teacher_weight and feature_weight are shares, the labels get the rest: at most 1 together"
            )
        return self


class PrivacyRecipe(Strict):
    """The attackers that the obfuscator is trained against, weighted by `privacy_weight`.

    Attributes:
        target: "error" maximises the attacker's error, as in the paper; "class-mean" pulls its reconstruction to the
            mean image of the class, and no further.
        attackers: "paper", "residual" or "unet", any number of each; the obfuscator faces the currently best one.
        restart_epochs: epochs between two restarts, each of one attacker in turn; None for never.
    """

    target: Literal["error", "class-mean"] = "error"
    attackers: tuple[Literal["paper", "residual", "unet"], ...] = ("paper",)
    restart_epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_usable(self) -> PrivacyRecipe:
        if not self.attackers and self.restart_epochs is not None:
            raise ValueError("restart_epochs without attackers has none to restart; name some, or leave it out")
        return self


class TransferRecipe(Strict):
    """Transfer of the payload to further classifiers.

    Attributes:
        ensemble: further classifiers to train for, named as `classifier` is; each counts as much as that one.
        diversity: how often a classifier's input is shrunk and moved at random in training, in [0, 1].
        noise: standard deviation of the noise in a classifier's input in training; black is 0 and white is 1.
    """

    ensemble: tuple[str, ...] = ()
    diversity: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0, le=1)


class BlackBoxRecipe(Strict):
    """Query-only access to a classifier whose address stands in `classifier`.

    Attributes:
        model: its name at the endpoint.
        queries: images that may be sent to the endpoint in all: public ones, and decoded ones.
        tuning: share of the queries that is reserved for tuning the decoded images to the endpoint's own predictions;
            photographs need none.
        answers: "scores" of all classes, or the "label" alone.
        rate: images per second at most.
        mean: per RGB channel, of its input on the [0, 1] scale; by default that of the images.
        std: likewise.
        surrogates: classifiers of the zoo that learn to predict as it does; the first one counts as the classifier.
        images_seen: training images of each of them, with repetition.
        class_map: the file of a class map, if the classes are not all of its outputs; see `read_class_map`.
    """

    model: str = ""
    queries: int = Field(default=10_000, ge=100)
    tuning: float = Field(default=0.2, ge=0, lt=1)
    answers: Literal["scores", "label"] = "scores"
    rate: float = Field(default=200.0, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    surrogates: tuple[Architecture, ...] = Field(default=("resnet-local", "vgg7"), min_length=1)
    images_seen: int = Field(default=200_000, ge=1)
    class_map: str | None = None


class _Protecting(_Named):
    """What every recipe of an obfuscator has.

    Attributes:
        classifier: the frozen classifier: the folder of its bundle, relative to the working directory, or whatever
            `sfumato.lab.classifiers.classifier_bundle` imports; or the address of an endpoint, see `black_box`.
    """

    classifier: str
    transfer: TransferRecipe = TransferRecipe()
    black_box: BlackBoxRecipe = BlackBoxRecipe()


class ObfuscatorRecipe(_Protecting, ObfuscatorNetRecipe):
    """An obfuscator for a frozen classifier; what is left out is the paper's.

    Attributes:
        privacy_weight: lambda, the weight of the reconstruction error in `L_c - lambda L_r`.
        snapshots_every: keep both networks every so many epochs, to attack them as they were then; None for never.
    """

    kind: Literal["obfuscator"]
    privacy_weight: float = Field(default=1.0, ge=0)
    snapshots_every: int | None = Field(default=None, ge=1)
    utility: UtilityRecipe = UtilityRecipe()
    privacy: PrivacyRecipe = PrivacyRecipe()

    @model_validator(mode="after")
    def _is_usable(self) -> ObfuscatorRecipe:
        every = self.privacy.restart_epochs
        if self.data.label_columns and (self.privacy.target == "class-mean" or self.bottleneck.entropy_weight):
            raise ValueError(
                'data.label_columns: privacy.target = "class-mean" and bottleneck.entropy_weight need one class per '
                'image; leave them out, or use privacy.target = "error" and bottleneck.rate_weight'
            )
        if self.training.int8_epochs:
            raise ValueError("training.int8_epochs is for classifiers and sketches; leave it out")
        if self.training.small_epochs:
            raise ValueError(_WHOLE_IMAGES)
        if every is not None and self.training.weight_average:
            raise ValueError(
                "privacy.restart_epochs: a restarted attacker's average would be of two networks; leave it out, or "
                "training.weight_average"
            )
        if not self.privacy.attackers and self.privacy_weight > 0:
            raise ValueError("privacy_weight needs attackers: name some in privacy.attackers, or set it to 0")
        if self.privacy.target == "class-mean" and not self.privacy_weight:
            raise ValueError('privacy.target = "class-mean" has no effect while privacy_weight is 0')
        if every is not None and every >= self.training.epochs:
            raise ValueError(f"privacy.restart_epochs = {every} is never reached in {self.training.epochs} epochs")
        return self


class SketchRecipe(_Protecting, SketchNetRecipe, _Taught):
    """An obfuscator that classifies on the device and sends an image decoded from a few bits.

    Attributes:
        decoded_share: share of each training batch that is decoded, to save time; all of it is encoded.
        offload_rate: the share of images to be sent; the others are handled on-device.
        held_out_images: training images, from all over the set, that calibrate the device's confidence and the gate's
            threshold instead.
        min_images_per_code: codes of fewer training images are merged with the most similar one of their class before
            the bundle is written, so that whatever is decoded has so many images behind it; 0 for never.
        learn: "all"; or "decoder", when training starts from another bundle: its encoder stays, and so do the device's
            predictions and the meaning of its codes; only the decoder is learned, for another classifier. By default
            "decoder" from a bundle and "all" otherwise.
    """

    kind: Literal["sketch"]
    decoded_share: float = Field(default=0.125, gt=0, le=1)
    offload_rate: float = Field(default=0.15, ge=0, le=1)
    held_out_images: int = Field(default=2000, ge=2)
    min_images_per_code: int = Field(default=20, ge=0)
    learn: Literal["all", "decoder"] | None = None

    @model_validator(mode="after")
    def _takes_whole_images(self) -> SketchRecipe:
        if self.data.label_columns:
            raise ValueError(f"data.label_columns: a sketch's code names one class. {_MULTI_LABEL}")
        if self.training.small_epochs:
            raise ValueError(_WHOLE_IMAGES)
        return self


AnyRecipe = ClassifierRecipe | ObfuscatorRecipe | SketchRecipe
_ADAPTER: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="kind")])


def teacher_views(recipe: AnyRecipe) -> int:
    """Return how many fixed views of each image a recipe's teacher is computed on; 0 for new ones in each epoch."""
    return 0 if isinstance(recipe, ObfuscatorRecipe) else recipe.teacher_views


def schema() -> dict[str, object]:
    """Return the JSON Schema of recipes, which `docs/schemas/recipe.json` holds."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe", **_ADAPTER.json_schema()}


def load_recipe(path: Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Read and validate a recipe.

    Args:
        path: a TOML file.
        overrides: such as `training.epochs=4`; the value is read as TOML, or as text if it is none.

    Raises:
        RecipeError: the file is missing or no TOML, or a key is unknown or its value invalid.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides or []:
        _apply(raw, override)
    return parse_recipe(raw, where=str(path))


def parse_recipe(raw: Mapping[str, object], *, where: str = "recipe") -> AnyRecipe:
    """Validate a recipe, such as that of a bundle; earlier versions' names of keys are accepted.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        return _ADAPTER.validate_python(upgraded(raw))
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(detail) for detail in error.errors())) from error


def _explain(detail: Any) -> str:
    _kind, *keys = detail["loc"] or [None]
    place = ".".join(str(key) for key in keys) or "kind"
    if detail["type"] == "value_error":
        return f"{place!r}: {detail['ctx']['error']}" if keys else str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {place!r} (misspelt?)"
    if detail["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place!r}: {detail['msg']}"


def _apply(raw: dict[str, object], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"--set {override!r}: expected key=value, such as training.epochs=4")
    try:
        ((_, value),) = tomllib.loads(f"v = {text}").items()
    except ValueError:  # no TOML, or several lines of it
        value = text
    *parents, last = key.strip().split(".")
    table = raw
    for parent in parents:
        found = table.setdefault(parent, {})
        if not isinstance(found, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} is a value, not a table")
        table = found
    table[last] = value
