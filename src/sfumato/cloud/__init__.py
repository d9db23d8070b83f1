"""The cloud's side: serve any ONNX classifier over the Open Inference Protocol, without knowing of obfuscation."""

from sfumato.cloud.app import Application, ApplicationOptions, check_options
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.hosts import is_loopback
from sfumato.cloud.limits import Limits
from sfumato.cloud.model_repository import Catalogue, Source, catalogue_of, sources_in
from sfumato.cloud.replicas import Replicas, serve_replicas
from sfumato.cloud.server import running, serve

__all__ = [
    "Application",
    "ApplicationOptions",
    "Catalogue",
    "Limits",
    "Replicas",
    "ServedModel",
    "Source",
    "catalogue_of",
    "check_options",
    "is_loopback",
    "running",
    "serve",
    "serve_replicas",
    "sources_in",
]
