"""The device's side: hold the private image, obfuscate it, and send nothing else.

The names below load on first use, so that importing this package is quick even on a small machine.
"""

from typing import TYPE_CHECKING

from sfumato.artifacts.plugins import lazy

if TYPE_CHECKING:
    from sfumato.device.client import Client as Client
    from sfumato.device.client import EndpointStatus as EndpointStatus
    from sfumato.device.client import FingerprintWarning as FingerprintWarning
    from sfumato.device.image import load_image as load_image
    from sfumato.device.image import prepare as prepare
    from sfumato.device.image_file_client import FileClient as FileClient
    from sfumato.device.obfuscator import Decision as Decision
    from sfumato.device.obfuscator import ObfuscatedImage as ObfuscatedImage
    from sfumato.device.obfuscator import Obfuscator as Obfuscator
    from sfumato.device.predictions import Prediction as Prediction

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "sfumato.device.client": "Client EndpointStatus FingerprintWarning",
        "sfumato.device.image": "load_image prepare",
        "sfumato.device.image_file_client": "FileClient",
        "sfumato.device.obfuscator": "Decision ObfuscatedImage Obfuscator",
        "sfumato.device.predictions": "Prediction",
    },
)
