"""The tables of a recipe: which images, how long to train, what to learn, and from whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sfumato.lab.data import Augmentation
from sfumato.lab.data.image_set import Half
from sfumato.lab.models.precision import Wanted
from sfumato.lab.models.rebuild import Strict

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
    "obfuscator-trunk",
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
            them loses little accuracy. Batch norms stay as they are then, and the learning rate is a tenth of the
            schedule's. Of classifiers and sketches.
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
