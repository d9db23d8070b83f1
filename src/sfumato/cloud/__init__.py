"""The cloud's side: serves any ONNX classifier over the Open Inference Protocol, and knows nothing of obfuscation."""

from sfumato.cloud.app import create_app
from sfumato.cloud.catalogue import Catalogue, Source, catalogue_of, sources_in
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.server import Limits, running, serve

__all__ = [
    "Catalogue",
    "Limits",
    "ServedModel",
    "Source",
    "catalogue_of",
    "create_app",
    "running",
    "serve",
    "sources_in",
]
