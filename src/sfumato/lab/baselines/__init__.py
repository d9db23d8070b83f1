"""Baselines: what an obfuscator has to be better than, behind one interface.

To add one: write a file in this folder with a class derived from `Method`, and enter it in `METHODS`. Training,
bundle, command line and audit then know it.
"""

from sfumato.baselines.bundles import load_module, refit, write_baseline
from sfumato.baselines.cloak import Cloak
from sfumato.baselines.joint import Joint
from sfumato.baselines.making import make
from sfumato.baselines.max_entropy import MaxEntropy
from sfumato.baselines.method import Method, Training
from sfumato.baselines.noise import Noise
from sfumato.baselines.nopeek import NoPeek
from sfumato.baselines.pca import PrincipalComponents
from sfumato.baselines.scramble import ScrambleBlocks, ScramblePixels
from sfumato.baselines.shredder import Shredder
from sfumato.baselines.simple import Blur, Downsample, Identity, Pixelate
from sfumato.baselines.stand_in import StandIn
from sfumato.errors import TrainingError

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
    "stand-in": StandIn,
}


def build(name: str, height: int, width: int, *, strength: float | None = None, seed: int = 0) -> Method:
    """Builds a baseline by its name.

    Args:
        name: a key of `METHODS`.
        height: rows of the pictures.
        width: columns of the pictures.
        strength: None for the method's default.
        seed: of everything random that stays.

    Raises:
        TrainingError: an unknown name, or a strength or size that the method does not take.
    """
    if name not in METHODS:
        raise TrainingError(f"no baseline is called {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name](height, width, strength=strength, seed=seed)


__all__ = ["METHODS", "Method", "Training", "build", "load_module", "make", "refit", "write_baseline"]
