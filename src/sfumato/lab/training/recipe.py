"""Recipes: the contents of a TOML file, validated. The code that does the work takes plain arguments instead."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator

from sfumato.artifacts.versions import nearest, upgraded
from sfumato.errors import RecipeError
from sfumato.lab.models.rebuild import ObfuscatorNetRecipe, SketchNetRecipe, Strict
from sfumato.lab.training.recipe_parts import (
    Architecture,
    BlackBoxRecipe,
    DataRecipe,
    PrivacyRecipe,
    TrainingRecipe,
    TransferRecipe,
    UtilityRecipe,
)

_MULTI_LABEL = 'Import a multi-label classifier (`sfumato import --multi-label`), and train kind = "obfuscator" for it'
_WHOLE_IMAGES = "training.small_epochs is for classifiers alone; leave it out"


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
    kind, *keys = detail["loc"] or [None]
    place = ".".join(str(key) for key in keys) or "kind"
    if detail["type"] == "value_error":
        return f"{place!r}: {detail['ctx']['error']}" if keys else str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        (model,) = (one for one in get_args(AnyRecipe) if kind in get_args(one.model_fields["kind"].annotation))
        table = place.rpartition(".")[0]
        known = sorted(_keys(model), key=lambda key: key.rpartition(".")[0] == table)  # this table's names go first
        return f"unknown key {place!r}{nearest(str(keys[-1]), {key.rpartition('.')[2]: key for key in known})}"
    if detail["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place!r}: {detail['msg']}"


def _keys(model: type[BaseModel], table: str = "") -> Iterator[str]:
    """Return the keys of a recipe, as `--set` takes them."""
    for name, field in model.model_fields.items():
        yield table + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{table}{name}.")


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
