"""From a bundle's weights back to the network that was trained."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file

from sfumato.artifacts.bundle import OBFUSCATOR_WEIGHTS, Bundle
from sfumato.errors import BundleError
from sfumato.lab.models import Obfuscator, Sketcher, obfuscator_of, sketcher_of


def rebuilt(bundle: Bundle, weights: str = OBFUSCATOR_WEIGHTS) -> Obfuscator | Sketcher | None:
    """The network of an obfuscator's bundle.

    Args:
        bundle: of kind "obfuscator".
        weights: the file that they lie in.

    Returns:
        It with its weights, in evaluation mode; None if `sfumato train` did not make it, or its weights are not there.

    Raises:
        BundleError: recipe and weights do not fit.
    """
    kind = bundle.recipe.kind
    if kind not in ("obfuscator", "sketch") or weights not in bundle.files:
        return None
    size = bundle.preprocessing
    net: Obfuscator | Sketcher
    try:
        if kind == "sketch":
            net = sketcher_of(bundle.recipe.to_json(), size.height, size.width, classes=len(bundle.labels))
        else:
            net = obfuscator_of(bundle.recipe.to_json())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: the recipe does not describe an obfuscator: {error}") from error
    try:
        net.load_state_dict(load_file(bundle.file(weights)))
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(f"{bundle.path}: weights do not fit the obfuscator: {error}") from error
    return net.eval()
