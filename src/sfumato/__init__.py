"""sfumato: use a classifier in the cloud without showing it the image.

An obfuscator runs on the device and changes the image before it travels; an unmodified classifier
answers. This is not encryption: how much of the image an attacker can reconstruct is a matter of
measurement, not of proof.

Importing this package imports neither torch nor ONNX Runtime; the names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle, Preprocessing
    from sfumato.device import Client, Obfuscator
    from sfumato.errors import SfumatoError

__version__ = "0.1.0"

__all__ = ["Bundle", "Client", "Obfuscator", "Preprocessing", "SfumatoError", "__version__"]

_HOMES = {
    "Bundle": "sfumato.artifacts.bundle",
    "Preprocessing": "sfumato.artifacts.bundle",
    "Client": "sfumato.device",
    "Obfuscator": "sfumato.device",
    "SfumatoError": "sfumato.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
