"""The baselines by name."""

from sfumato.errors import TrainingError
from sfumato.lab.baselines.cloak import Cloak
from sfumato.lab.baselines.joint import Joint
from sfumato.lab.baselines.max_entropy import MaxEntropy
from sfumato.lab.baselines.method import Method
from sfumato.lab.baselines.noise import Noise
from sfumato.lab.baselines.nopeek import NoPeek
from sfumato.lab.baselines.pca import PrincipalComponents
from sfumato.lab.baselines.public_photo import PublicPhoto
from sfumato.lab.baselines.scramble import ScrambleBlocks, ScramblePixels
from sfumato.lab.baselines.shredder import Shredder
from sfumato.lab.baselines.simple import Blur, Downsample, Identity, Pixelate

METHODS: dict[str, type[Method]] = {
    "identity": Identity,
    "downsample": Downsample,
    "blur": Blur,
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
    """Build a baseline by its name.

    Args:
        name: a key of `METHODS`, or its name in an earlier version.
        height: rows of the images.
        width: columns of the images.
        strength: None for the method's default.
        seed: of everything random that stays.

    Raises:
        TrainingError: an unknown name, or a strength or size that the method does not take.
    """
    name = _FORMER_NAMES.get(name, name)
    if name not in METHODS:
        raise TrainingError(f"no baseline is called {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name](height, width, strength=strength, seed=seed)
