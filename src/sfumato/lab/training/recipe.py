"""Recipes: what a TOML file may say, validated. They end here: the code that does the work takes plain arguments."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from sfumato.artifacts.versions import upgraded
from sfumato.errors import RecipeError
from sfumato.lab.models.precision import Wanted

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
]
"""Names from `sfumato.lab.models.CLASSIFIERS`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(_Strict):
    """Which images.

    Attributes:
        source: `cifar10`, `faces`, a local folder, a CSV file of paths and classes, or a hub id (`owner/name`, or
            `owner/name:configuration`).
        size: (height, width) in pixels that images are fitted to; needed where they differ in size.
        image_column: the column with the images, if it cannot be found by its type.
        label_column: the column with the classes, if it cannot be found by its type or name.
        stream: decode the training images as they are needed, where they do not fit the memory; see
            `sfumato.lab.data.Stream`.
        train_images: use only the first so many training images; of a stream, so many in each epoch.
        test_images: use only the first so many test images; has to be said of a stream, as they are kept in memory.
        flip: mirror training images at random.
        crop_padding: shift training images by up to so many pixels.
        zoom: show crops of training images, of at least this share of their area, resized to the whole; 1 or nothing
            for none.
    """

    source: str = "cifar10"
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] | None = None
    image_column: str | None = None
    label_column: str | None = None
    stream: bool = False
    train_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    flip: bool = True
    crop_padding: int = Field(default=0, ge=0, le=16)
    zoom: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _is_usable(self) -> DataRecipe:
        if self.zoom is not None and self.zoom < 1 and self.crop_padding:
            raise ValueError("zoom and crop_padding are two ways to crop; set one of them alone")
        if self.stream and self.size is None:
            raise ValueError("stream needs size: the size that images are fitted to as they come")
        if self.stream and self.test_images is None:
            raise ValueError("stream needs test_images: so many test images are kept in memory")
        if self.stream and self.source in ("cifar10", "faces", "faces-correlated"):
            raise ValueError(f"{self.source} fits the memory, and is read from there; leave stream out")
        return self


class TrainingRecipe(_Strict):
    """How the weights are found.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes together.
        seed: of weights, order and augmentation.
        optimizer: "adam", or "sgd" with Nesterov momentum 0.9.
        learning_rate: the highest one.
        weight_decay: L2 penalty.
        schedule: "constant"; "step" divides by 10 every `step_epochs`; "one-cycle" rises and falls once.
        step_epochs: for "step".
        warmup: for "one-cycle", the share of the steps that rise.
        precision: "auto" computes in bfloat16 what this machine is faster at so, and everything else in float32;
            "32-true" and "bf16-mixed", as Lightning Fabric names them, are one of both throughout.
        channels_last: keep activations in NHWC order, which is faster on most machines.
        compile: fuse operations with `torch.compile` first: minutes, which did not pay on the CPUs that were tried.
        half_weights: round the trained weights to half precision before they are measured and written, in files of
            half the size.
        validate_every: epochs between looks at the test images (the last epoch always looks).
    """

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=128, ge=2)
    seed: int = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "step", "one-cycle"] = "step"
    step_epochs: int = Field(default=30, ge=1)
    warmup: float = Field(default=0.2, gt=0, lt=1)
    precision: Wanted = "auto"
    channels_last: bool = True
    compile: bool = False
    half_weights: bool = False
    validate_every: int = Field(default=1, ge=1)


class ClassifierRecipe(_Strict):
    """A classifier of the zoo, trained on plain images.

    Attributes:
        note: what people should know of the result; goes into the bundle.
        architecture: a name from `sfumato.lab.models.CLASSIFIERS`.
        label_smoothing: of the cross-entropy.
        teacher: a classifier to learn from, named as an obfuscator's `classifier` is.
        teacher_weight: share of the teacher's answers in the loss, beside the labels'; only with a teacher.
        temperature: that the teacher's answers are softened with; only with a teacher. The default is the upper
            end of 2.5 to 4, the range that Hinton et al. 2015, section 3, find best for small networks.
    """

    kind: Literal["classifier"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    architecture: Architecture
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    teacher: str | None = None
    teacher_weight: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()


class InputRecipe(_Strict):
    """What is taken from the image before the obfuscator looks at it.

    Attributes:
        remove_colour: leave brightness alone.
        remove_frequencies: remove the `k x k` lowest frequencies of the image's cosine transform; 0 for none.
    """

    remove_colour: bool = False
    remove_frequencies: int = Field(default=0, ge=0)


class UtilityRecipe(_Strict):
    """What the frozen classifier is to make of obfuscated images; the labels get what the other shares leave.

    Without a share of the labels, those of the training images are not looked at, and need not exist: where
    something goes by classes, it goes by the classifier's own answers.

    Attributes:
        teacher_weight: share of the classifier's answers on the plain images.
        feature_weight: share of its features.
        temperature: that answers are softened with; only with `teacher_weight`.
    """

    teacher_weight: float = Field(default=0.0, ge=0, le=1)
    feature_weight: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _is_usable(self) -> UtilityRecipe:
        if self.teacher_weight + self.feature_weight > 1 + 1e-9:
            raise ValueError(
                "teacher_weight and feature_weight are shares, the labels get the rest: at most 1 together"
            )
        return self


class PrivacyRecipe(_Strict):
    """Whom the obfuscator is trained against; `privacy_weight` says how much.

    Attributes:
        target: "error" maximises the attacker's error, as in the paper; "class-mean" draws its reconstruction to the
            mean image of the class, and cannot go beyond that.
        attackers: "paper", "residual" or "unet", any number of each; the obfuscator faces the best one at the time.
        restart_epochs: epochs between two restarts; one attacker in turn begins anew. None for never.
    """

    target: Literal["error", "class-mean"] = "error"
    attackers: tuple[Literal["paper", "residual", "unet"], ...] = ("paper",)
    restart_epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_usable(self) -> PrivacyRecipe:
        if not self.attackers and self.restart_epochs is not None:
            raise ValueError("restart_epochs without attackers has nobody to restart; name some, or leave it out")
        return self


class BottleneckRecipe(_Strict):
    """Noise in the obfuscator's code, and what the code may tell; there is noise as soon as one weight is above 0.

    Attributes:
        rate_weight: of the nats that an image's code tells at most, against a standard normal.
        entropy_weight: likewise, against a mixture with a component for each class (conditional entropy).
    """

    rate_weight: float = Field(default=0.0, ge=0)
    entropy_weight: float = Field(default=0.0, ge=0)


class OutputRecipe(_Strict):
    """What comes out of the obfuscator.

    Attributes:
        format: "float", as in the paper, or "8-bit": multiples of 1/255 in [0, 1], as an image file holds.
    """

    format: Literal["float", "8-bit"] = "float"


class TransferRecipe(_Strict):
    """What lets other classifiers than the one that it is for understand the payload, too.

    Attributes:
        also: further classifiers to train against, named as `classifier` is; each counts as much as that one.
        diversity: how often what a classifier sees in training is shrunk and moved at random, in [0, 1].
        noise: standard deviation of the noise in what a classifier sees in training; black is 0 and white is 1.
    """

    also: tuple[str, ...] = ()
    diversity: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0, le=1)


class BlackBoxRecipe(_Strict):
    """How a classifier is learned of which only answers can be had; its address stands in `classifier`.

    Attributes:
        model: its name at the endpoint.
        queries: how many images the endpoint may be asked about in all; public ones, and drawings.
        tuning: the share of the queries that is kept for changing the drawings to what the endpoint itself answers;
            photographs need none.
        answers: "scores" of all classes, or the "label" alone.
        rate: images a second that it is asked about at most.
        mean: per RGB channel, of its input on the [0, 1] scale; by default that of the images.
        std: likewise.
        surrogates: classifiers of the zoo that learn to answer as it does; the first one counts as the classifier.
        images_seen: how many images each of them learns from, with repetition.
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


class ObfuscatorRecipe(_Strict):
    """An obfuscator for a frozen classifier; what is left out is the paper's.

    Attributes:
        note: what people should know of the result; goes into the bundle.
        classifier: folder of the frozen classifier's bundle, from where the command is run, or whatever
            `sfumato.lab.classifiers.classifier_bundle` makes one of; or the address of an endpoint, for which see
            `black_box`.
        privacy_weight: lambda, the weight of the reconstruction error in `L_c - lambda L_r`.
        snapshots_every: keep both networks every so many epochs, to attack them as they were then; None for never.
    """

    kind: Literal["obfuscator"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    classifier: str
    privacy_weight: float = Field(default=1.0, ge=0)
    snapshots_every: int | None = Field(default=None, ge=1)
    input: InputRecipe = InputRecipe()
    utility: UtilityRecipe = UtilityRecipe()
    privacy: PrivacyRecipe = PrivacyRecipe()
    bottleneck: BottleneckRecipe = BottleneckRecipe()
    output: OutputRecipe = OutputRecipe()
    transfer: TransferRecipe = TransferRecipe()
    black_box: BlackBoxRecipe = BlackBoxRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @model_validator(mode="after")
    def _is_usable(self) -> ObfuscatorRecipe:
        every = self.privacy.restart_epochs
        if not self.privacy.attackers and self.privacy_weight > 0:
            raise ValueError("privacy_weight needs attackers: name some in privacy.attackers, or set it to 0")
        if self.privacy.target == "class-mean" and not self.privacy_weight:
            raise ValueError('privacy.target = "class-mean" has no effect while privacy_weight is 0')
        if every is not None and every >= self.training.epochs:
            raise ValueError(f"privacy.restart_epochs = {every} never comes in {self.training.epochs} epochs")
        return self


class SketchRecipe(_Strict):
    """An obfuscator that decides on the device and draws a code of a few bits, for a frozen classifier.

    Attributes:
        note: what people should know of the result; goes into the bundle.
        classifier: folder of the frozen classifier's bundle, from where the command is run, or whatever
            `sfumato.lab.classifiers.classifier_bundle` makes one of; or the address of an endpoint, for which see
            `black_box`.
        code_bits: how many bits about an image may travel at most; what an attacker gets at most, too. The first of
            them say the device's answer, 4 for 10 classes.
        teacher_weight: share of the frozen classifier's answers on plain images in the loss, beside the labels'.
        temperature: that answers are softened with.
        drawn_share: share of each training batch that is drawn, which saves time; all of it is looked at.
        offload_rate: the share of images that is to be sent; the others are answered on the device.
        held_out_images: so many training images, drawn from all over the set, are not trained on, but tell how sure
            the device's answers are and where the gate's threshold lies.
        learn: "all"; or "drawing", when training starts from another bundle: its device's answers and the meaning
            of its codes stay, and only what is drawn is learned, for another classifier. By default "drawing" from a
            bundle and "all" from nothing.
        drawing: "learned"; or "photographs", for each answer the training image that all known classifiers are surest
            of, which another one is likely to understand, too. That image is sent again and again, as it is: the
            training images have to be public ones.
    """

    kind: Literal["sketch"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    classifier: str
    code_bits: int = Field(default=8, ge=1, le=64)
    teacher_weight: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    drawn_share: float = Field(default=0.125, gt=0, le=1)
    offload_rate: float = Field(default=0.15, ge=0, le=1)
    held_out_images: int = Field(default=2000, ge=2)
    learn: Literal["all", "drawing"] | None = None
    drawing: Literal["learned", "photographs"] = "learned"
    transfer: TransferRecipe = TransferRecipe()
    black_box: BlackBoxRecipe = BlackBoxRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()


AnyRecipe = ClassifierRecipe | ObfuscatorRecipe | SketchRecipe
_ADAPTER: TypeAdapter[AnyRecipe] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="kind")])


def load_recipe(path: Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Reads and validates a recipe.

    Args:
        path: a TOML file.
        overrides: such as `training.epochs=4`; the value is read as TOML, or as text if it is none.

    Raises:
        RecipeError: the file is missing or no TOML, or a key is unknown or has a value that it cannot have.
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


def parse_recipe(raw: dict[str, Any], *, where: str = "recipe") -> AnyRecipe:
    """Validates a recipe that was read already.

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


def _apply(raw: dict[str, Any], override: str) -> None:
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
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} is a value, not a table")
    table[last] = value
