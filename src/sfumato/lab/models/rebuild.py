"""From a recipe, or a bundle's weights, to the obfuscator's network and its payload, for training and audits alike."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.artifacts.bundle import OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.errors import BundleError
from sfumato.lab.models.fixed_ops import LEVEL, Normalize, Removal
from sfumato.lab.models.obfuscator import NoisyCode, Obfuscator
from sfumato.lab.models.sketch import Sketcher, Trunk


class Strict(BaseModel):
    """A part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputRecipe(Strict):
    """What is removed from the image before the obfuscator sees it.

    Attributes:
        remove_colour: keep only brightness.
        remove_frequencies: remove the `k x k` lowest frequencies of the image's cosine transform; 0 for none.
    """

    remove_colour: bool = False
    remove_frequencies: int = Field(default=0, ge=0)


class BottleneckRecipe(Strict):
    """Noise in the obfuscator's code, and a limit on its information; there is noise if one weight is above 0.

    Attributes:
        rate_weight: of the code's information about the image in nats, bounded against a standard normal.
        entropy_weight: likewise, against a mixture with one component per class (conditional entropy).
    """

    rate_weight: float = Field(default=0.0, ge=0)
    entropy_weight: float = Field(default=0.0, ge=0)


class OutputRecipe(Strict):
    """The format of the obfuscated image.

    Attributes:
        format: "float", as in the paper, or "8-bit": multiples of 1/255 in [0, 1], as an image file holds.
    """

    format: Literal["float", "8-bit"] = "float"


class ObfuscatorNetRecipe(Strict):
    """The part of an obfuscator's recipe that decides on its network; what is left out is the paper's."""

    input: InputRecipe = InputRecipe()
    bottleneck: BottleneckRecipe = BottleneckRecipe()
    output: OutputRecipe = OutputRecipe()


class SketchNetRecipe(Strict):
    """The part of a sketch's recipe that decides on its network.

    Attributes:
        trunk: the network on the device. "resnet", or one of three budgets of multiply-accumulates for an image of any
            size: "device-nano" (about 2.5 million), "device-paper" (21 million), "device-large" (60 million).
        code_bits: bits of the code: the most that the payload, and so an attacker, gets of an image. The first of them
            are the device's prediction, 4 for 10 classes.
        decoder: "learned", or "photographs": for each class the training image that all known classifiers are surest
            of, which another one is likely to classify correctly, too. That image is sent for every image of the class,
            as it is: the training images have to be public.
    """

    trunk: Trunk = "resnet"
    code_bits: int = Field(default=8, ge=1, le=64)
    decoder: Literal["learned", "photographs"] = "learned"


def obfuscator_of(recipe: ObfuscatorNetRecipe) -> Obfuscator:
    """Return the network that a recipe describes, with fresh weights."""
    removal = Removal(colour=recipe.input.remove_colour, frequencies=recipe.input.remove_frequencies)
    return Obfuscator(
        removal=removal if removal.colour or removal.frequencies else None,
        noisy=recipe.bottleneck.rate_weight > 0 or recipe.bottleneck.entropy_weight > 0,
        eight_bit=recipe.output.format == "8-bit",
    )


def sketcher_of(recipe: SketchNetRecipe, height: int, width: int, *, classes: int) -> Sketcher:
    """Return the network that a recipe describes for images (H, W), with fresh weights.

    Raises:
        ValueError: the code is too short for so many classes.
    """
    photographs = recipe.decoder == "photographs"
    return Sketcher(height, width, classes=classes, bits=recipe.code_bits, photographs=photographs, trunk=recipe.trunk)


def recipe_of(bundle: Bundle) -> ObfuscatorNetRecipe | SketchNetRecipe | None:
    """Return the network that a bundle's recipe describes; None if `sfumato train` made no obfuscator of it.

    Raises:
        BundleError: the recipe describes no network.
    """
    given = bundle.recipe.to_json()
    model: type[ObfuscatorNetRecipe | SketchNetRecipe]
    match given.get("kind"):
        case "obfuscator":
            model = ObfuscatorNetRecipe
        case "sketch":
            model = SketchNetRecipe
        case _:
            return None
    try:
        return model.model_validate({key: given[key] for key in model.model_fields if given.get(key) is not None})
    except ValidationError as error:
        raise BundleError(f"{bundle.path}: the recipe does not describe an obfuscator: {error}") from error


def rebuilt(bundle: Bundle, weights: str = OBFUSCATOR_WEIGHTS) -> Obfuscator | Sketcher | None:
    """Return the network of an obfuscator's bundle, with the weights of that file, in evaluation mode.

    None if `sfumato train` did not make it, or the weights are not there.

    Raises:
        BundleError: recipe and weights do not fit.
    """
    recipe, size = recipe_of(bundle), bundle.preprocessing
    file = None if recipe is None else find_lab_file(bundle, weights)
    if recipe is None or file is None:
        return None
    net: Obfuscator | Sketcher
    try:
        if isinstance(recipe, SketchNetRecipe):
            net = sketcher_of(recipe, size.height, size.width, classes=len(bundle.labels))
        else:
            net = obfuscator_of(recipe)
        net.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise BundleError(f"{bundle.path}: weights do not fit the obfuscator: {error}") from error
    return net.eval()


class Payload(nn.Module):
    """Images (height, width) to the payload: obfuscated images as the classifier's input, computed as on the device.

    Attributes:
        step: the largest distance of two neighbouring values where they are rounded; 0 where they are not.
        code_bits: of a sketcher alone; the payload takes at most `2 ** code_bits` different values.
        code_values: of a sketcher alone; how many codes it can make: those that name one of its classes.
        noisy_code: of an obfuscator with noise alone; the payload depends on the image through it alone.
    """

    code_bits: int
    code_values: int
    noisy_code: NoisyCode

    def __init__(self, obfuscator: Obfuscator | Sketcher, normalize: Normalize, height: int, width: int) -> None:
        super().__init__()
        self.obfuscator, self.normalize = obfuscator, normalize
        self.step = 0.0
        if isinstance(obfuscator, Sketcher):
            self.code_bits, self.code_values = obfuscator.bits, obfuscator.code_values
            return
        if obfuscator.eight_bit:
            self.step = LEVEL / float(normalize.std.min())
        if obfuscator.noise is not None:
            self.noisy_code = NoisyCode(obfuscator, height, width)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> the classifier's input, the same shape."""
        net = self.obfuscator
        if isinstance(net, Sketcher):
            decoded = net.relaxed(images) if images.requires_grad else net(images)[0]
            out: Tensor = self.normalize(decoded)
        else:
            out = net.last_upsampling(self.normalize(net.decode_small(net.encode(images))))
        return out
