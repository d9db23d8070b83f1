"""sfumato: use a classifier in the cloud without showing it the image.

An obfuscator runs on the device and changes the image before it is sent; an unmodified classifier in the cloud
predicts. This is not encryption: how much of the image an attacker can reconstruct is measured, not proven.

Importing this package imports neither torch nor ONNX Runtime; the names below load on first use.
"""

import os
from typing import TYPE_CHECKING

from sfumato.artifacts.plugins import lazy

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.preprocessing import Preprocessing
    from sfumato.device import AsyncClient, Client, Obfuscator, predict, predict_proba
    from sfumato.errors import SfumatoError

__version__ = "0.1.0"

# ONNX Runtime's wheels send usage data, and a number that identifies the device, to Microsoft unless this is set before
# it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "AsyncClient",
    "Bundle",
    "Client",
    "Obfuscator",
    "Preprocessing",
    "SfumatoError",
    "__version__",
    "predict",
    "predict_proba",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "sfumato.artifacts.bundle": "Bundle",
        "sfumato.artifacts.preprocessing": "Preprocessing",
        "sfumato.device": "AsyncClient Client Obfuscator predict predict_proba",
        "sfumato.errors": "SfumatoError",
    },
)
