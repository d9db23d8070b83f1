"""The protocol's paths over HTTP.

Source: https://github.com/kserve/open-inference-protocol, "rest/inference_rest.yaml".
"""

from __future__ import annotations

SERVER = "/v2"
LIVE = "/v2/health/live"
READY = "/v2/health/ready"
MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"


def parse_infer(path: str) -> tuple[str, str | None] | None:
    """Return the model's name and version that a decoded inference path has; None for any other path."""
    match path.split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return model, None
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return model, version
    return None
