"""The part of JSON Schema that `docs/schemas` uses, as a validator.

Source: JSON Schema 2020-12, "Validation".
"""

import json
import re
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip
_CHECKS: dict[str, Any] = {
    "type": lambda v, t: any(
        isinstance(v, _TYPES[name]) and not (isinstance(v, bool) and name != "boolean")
        for name in ([t] if isinstance(t, str) else t)
    ),
    "const": lambda v, wanted: v == wanted,
    "enum": lambda v, allowed: v in allowed,
    "required": lambda v, keys: v is None or set(keys) <= set(v),
    "minimum": lambda v, least: v is None or v >= least,
    "maximum": lambda v, most: v is None or v <= most,
    "exclusiveMinimum": lambda v, least: v > least,
    "minItems": lambda v, least: len(v) >= least,
    "maxItems": lambda v, most: len(v) <= most,
    "pattern": lambda v, pattern: re.search(pattern, v) is not None,
}
_NOTES = {"$schema", "$id", "title", "description", "properties", "additionalProperties", "items"}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Return what of a JSON value the schema forbids, as "/place: keyword"."""
    assert set(schema) <= set(_CHECKS) | _NOTES, f"{set(schema) - set(_CHECKS) - _NOTES} is not supported"
    if "type" in schema and not _CHECKS["type"](value, schema["type"]):
        return [f"{where}: type"]
    found = [f"{where}: {key}" for key, check in _CHECKS.items() if key in schema and not check(value, schema[key])]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            inner = known.get(key, {} if others is True else others)
            found += [f"{where}/{key}: unknown"] if inner is False else faults(item, inner, f"{where}/{key}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{where}/{index}")
    return found


def schema(name: str) -> dict[str, Any]:
    """Return `docs/schemas/NAME.json`."""
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return found
