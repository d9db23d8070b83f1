"""The device's side: holds the private image, obfuscates it, and sends nothing else.

The names below load on first use, so that importing this package is quick even on a small machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.device.client import Answer, Client, EndpointStatus, FingerprintWarning
    from sfumato.device.image import load_image, prepare
    from sfumato.device.image_file_client import FileClient
    from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator

__all__ = [
    "Answer",
    "Client",
    "Decision",
    "EndpointStatus",
    "FileClient",
    "FingerprintWarning",
    "ObfuscatedImage",
    "Obfuscator",
    "load_image",
    "prepare",
]

_HOMES = {
    "Answer": "client",
    "Client": "client",
    "Decision": "obfuscator",
    "EndpointStatus": "client",
    "FileClient": "image_file_client",
    "FingerprintWarning": "client",
    "ObfuscatedImage": "obfuscator",
    "Obfuscator": "obfuscator",
    "load_image": "image",
    "prepare": "image",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato.device' has no attribute {name!r}")
    return getattr(import_module(f"sfumato.device.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
