"""The cloud's side: serves any ONNX classifier over the Open Inference Protocol, and knows nothing of obfuscation."""

from sfumato.cloud.app import create_app
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.model_repository import Catalogue, Source, catalogue_of, sources_in
from sfumato.cloud.replicas import Replicas, serve_replicas
from sfumato.cloud.server import Limits, running, serve

__all__ = [
    "Catalogue",
    "Limits",
    "Replicas",
    "ServedModel",
    "Source",
    "catalogue_of",
    "create_app",
    "running",
    "serve",
    "serve_replicas",
    "sources_in",
]
