"""The protocol's paths over HTTP.

Source: https://github.com/kserve/open-inference-protocol, "rest/inference_rest.yaml".
"""

from __future__ import annotations

import re

SERVER = "/v2"
LIVE = "/v2/health/live"
READY = "/v2/health/ready"
MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


def parse_infer(path: str) -> tuple[str, str | None] | None:
    """Return the model's name and version that a decoded inference path has; None for any other path."""
    found = _INFER.fullmatch(path)
    return None if found is None else (found[1], found[2])
