"""The device's side: hold the private image, obfuscate it, and send nothing else.

The names below load on first use, so that importing this package is quick even on a small machine.
"""

from typing import TYPE_CHECKING

from sfumato.artifacts.plugins import lazy

if TYPE_CHECKING:
    from sfumato.device.arrays import predict, predict_proba
    from sfumato.device.async_client import AsyncClient
    from sfumato.device.client import Client, EndpointStatus, FingerprintWarning
    from sfumato.device.image import load_image, prepare
    from sfumato.device.image_file_client import FileClient
    from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator
    from sfumato.device.predictions import Prediction

__all__ = [
    "AsyncClient",
    "Client",
    "Decision",
    "EndpointStatus",
    "FileClient",
    "FingerprintWarning",
    "ObfuscatedImage",
    "Obfuscator",
    "Prediction",
    "load_image",
    "predict",
    "predict_proba",
    "prepare",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "sfumato.device.async_client": "AsyncClient",
        "sfumato.device.client": "Client EndpointStatus FingerprintWarning",
        "sfumato.device.image": "load_image prepare",
        "sfumato.device.image_file_client": "FileClient",
        "sfumato.device.obfuscator": "Decision ObfuscatedImage Obfuscator",
        "sfumato.device.arrays": "predict predict_proba",
        "sfumato.device.predictions": "Prediction",
    },
)
