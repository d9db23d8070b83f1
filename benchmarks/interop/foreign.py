"""Triton's client for Python against `sfumato serve`."""

from __future__ import annotations

import urllib.parse
from typing import Any

import numpy as np
from servers import NAME
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX
from sfumato.artifacts.onnx_file import OnnxFunction

ROWS = 5


def asked(url: str) -> dict[str, Any]:
    """The responses: metadata, predictions in every combination of bytes and JSON, errors."""
    x = np.random.default_rng(0).normal(size=(ROWS, 3, 32, 32)).astype(np.float32)
    wanted = OnnxFunction(shipped.classifier_bundle() / CLASSIFIER_ONNX)(x)
    with triton.InferenceServerClient(urllib.parse.urlsplit(url).netloc) as client:
        metadata = client.get_model_metadata(NAME)
        farthest = {}
        for binary_in in (True, False):
            for binary_out in (True, False):
                given = _given("input", x, binary=binary_in)
                output = triton.InferRequestedOutput("logits", binary_data=binary_out)
                got = client.infer(NAME, [given], outputs=[output]).as_numpy("logits")
                key = f"{'binary' if binary_in else 'JSON'} in, {'binary' if binary_out else 'JSON'} out"
                farthest[key] = float(np.abs(got - wanted).max())
        errors = {
            "an input of another name": _status(client, NAME, _given("other", x)),
            "another datatype": _status(client, NAME, _given("input", x.astype(np.float64))),
            "another shape": _status(client, NAME, _given("input", x[:, :, :4])),
            "another model": _status(client, "other", _given("input", x)),
        }
        return {
            "client": f"tritonclient {metadata.version('tritonclient')}, HTTP",
            "extensions": client.get_server_metadata()["extensions"],
            "inputs": metadata["inputs"],
            "outputs": metadata["outputs"],
            "rows": ROWS,
            "farthest_logit": farthest,
            "error_statuses": errors,
        }


def _given(name: str, x: Any, *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput(name, list(x.shape), {"float32": "FP32", "float64": "FP64"}[x.dtype.name])
    given.set_data_from_numpy(x, binary_data=binary)
    return given


def _status(client: triton.InferenceServerClient, model: str, given: triton.InferInput) -> str:
    try:
        client.infer(model, [given])
    except InferenceServerException as error:
        return str(error.status())
    return "200"
