"""Write the OpenAPI description of `sfumato serve` to docs/openapi.json: `python -m scripts.write_openapi`.

The Open Inference Protocol as this server speaks it, with the codec's limits. Binary bodies are described by their type
alone, as OpenAPI has no words for what follows the JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.wire import DTYPES, HEADER_LENGTH, fields, paths

FILE = Path(__file__).parents[1] / "docs" / "openapi.json"
_JSON, _BINARY = "application/json", "application/octet-stream"
_NAME = {"type": "string", "minLength": 1, "maxLength": fields.MAX_NAME_CHARS}
_SCALARS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_METRICS = "/metrics"


def description() -> dict[str, Any]:
    """Return the OpenAPI description as plain JSON."""
    versioned = {"": paths.MODEL, "Version": paths.VERSION}
    operations: dict[str, Any] = {
        paths.SERVER: {"get": _get("server", "The server and its extensions.", "Server")},
        paths.LIVE: {"get": _get("live", "Whether the process runs. Open without a token.", "Live", open_=True)},
        paths.READY: {
            "get": _get(
                "ready", "Whether requests are taken; 503 otherwise. Open without a token.", "Ready", open_=True
            )
        },
        _METRICS: {
            "get": {
                "operationId": "metrics",
                "summary": "Counters for Prometheus.",
                "responses": {
                    "200": {"description": "The counters.", "content": {"text/plain": {}}},
                    **_errors(*_HOSTS, 401),
                },
            }
        },
    }
    for suffix, path in versioned.items():
        parameters = [_parameter("model")] + ([_parameter("version")] if suffix else [])
        operations[path] = {
            "parameters": parameters,
            "get": _get(f"model{suffix}", "The model's inputs, outputs and fingerprint.", "Model", 404),
        }
        operations[f"{path}/ready"] = {
            "parameters": parameters,
            "get": _get(f"modelReady{suffix}", "Whether the model is loaded.", "ModelReady", 404),
        }
        operations[f"{path}/infer"] = {"parameters": parameters, "post": _infer(suffix)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sfumato serve",
            "version": "2",
            "description": "The Open Inference Protocol, version 2, with the binary tensor extension.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{"token": []}, {}],
        "paths": operations,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    spec = _object({"name": _NAME, "datatype": {"type": "string"}, "shape": _integers(-1)})
    tensor = _object(
        {
            "name": _NAME,
            "datatype": {"enum": list(DTYPES)},
            "shape": _integers(0),
            "parameters": _SCALARS,
            "data": {"type": "array", "description": "Flat in row-major order, or nested as the shape says."},
        },
        optional=("parameters", "data"),
    )
    output = _object({"name": _NAME, "parameters": _SCALARS}, optional=("parameters",))
    return {
        "Error": _object({"error": {"type": "string"}}),
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}),
        "Server": _object({"name": _NAME, "version": _NAME, "extensions": _array({"type": "string"})}),
        "ModelReady": _object({"name": _NAME, "ready": {"type": "boolean"}}),
        "Model": _object(
            {
                "name": _NAME,
                "versions": _array(_NAME),
                "platform": {"type": "string"},
                "inputs": _array(spec),
                "outputs": _array(spec),
                "parameters": _SCALARS,
            },
            optional=("parameters",),
        ),
        "Tensor": tensor,
        "Request": _object(
            {
                "id": {"type": "string", "maxLength": fields.MAX_NAME_CHARS},
                "parameters": _SCALARS,
                "inputs": _array(_reference("Tensor"), least=1),
                "outputs": _array(output),
            },
            optional=("id", "parameters", "outputs"),
        ),
        "Response": _object(
            {"model_name": _NAME, "model_version": _NAME, "id": _NAME, "outputs": _array(_reference("Tensor"))},
            optional=("model_version", "id"),
        ),
    }


def _get(operation: str, summary: str, schema: str, *errors: int, open_: bool = False) -> dict[str, Any]:
    good = {"description": summary, "content": {_JSON: {"schema": _reference(schema)}}}
    responses = {"200": good, **_errors(*errors, *(() if open_ else (*_HOSTS, 401)))}
    if operation == "ready":
        responses["503"] = good | {"description": "The server is about to end."}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": responses,
        **({"security": []} if open_ else {}),
    }


def _infer(suffix: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary", "maxLength": 4096}}
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "How many bytes of the body are JSON; the bytes of the tensors follow them.",
    }
    return {
        "operationId": f"infer{suffix}",
        "summary": "Predictions for a batch.",
        "parameters": [length],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _reference("Request")}, _BINARY: binary},
        },
        "responses": {
            "200": {
                "description": "The model's outputs.",
                "content": {_JSON: {"schema": _reference("Response")}, _BINARY: binary},
            },
            **_errors(*_HOSTS, 401, 404, 413, 415, 429, 500, 503),
        },
    }


_HOSTS = (400, 403, 421)
"""What any request but those for the open paths may get, by its `Host` and `Origin`."""
_ERRORS = {
    400: "The request does not follow the protocol, or does not fit the model; or it has no `Host`, or several.",
    401: "A valid bearer token is needed.",
    403: "A page of another origin asks.",
    404: "No such model or version.",
    413: "The body is too long.",
    415: "Compressed bodies are not supported.",
    421: "The server does not go by the name in `Host`.",
    429: "This token has used up its rate; `Retry-After` says when to try again.",
    500: "The model broke on the request.",
    503: "Too many requests are waiting; `Retry-After` says when to try again.",
}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {_JSON: {"schema": _reference("Error")}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in sorted(statuses)}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _array(items: dict[str, Any], *, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": fields.MAX_TENSORS}


def _integers(minimum: int) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": "integer", "minimum": minimum},
        "maxItems": fields.MAX_DIMENSIONS,
    }


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


if __name__ == "__main__":
    FILE.write_text(json.dumps(description(), indent=2) + "\n", encoding="utf-8")
    print(FILE)
