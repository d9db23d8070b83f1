"""Check manifests against the classes that KServe's SDK has for them, made from its CRDs; run by the SDK's own Python.

`.interop/kserve/bin/python tests/kserve_models.py FILE...` prints what does not fit, a line each.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve
import kserve.models
import kubernetes.client.models
import yaml

PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "ResourceQuantity": str, "datetime": str}
KINDS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}


def misfits(value: Any, kind: str, where: str) -> Iterator[str]:
    if inner := re.fullmatch(r"[lL]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            yield f"{where}: a list is expected"
            return
        for index, item in enumerate(value):
            yield from misfits(item, inner[1], f"{where}[{index}]")
    elif inner := re.fullmatch(r"(?:dict\(str, (.+)\)|Dict\[str, (.+)\])", kind):
        for key, item in value.items():
            yield from misfits(item, inner[1] or inner[2], f"{where}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{where}: {kind} is expected, got {value!r}"
    elif kind not in ("object", "IntOrString"):
        yield from _misfits_of_class(value, kind, where)


def _misfits_of_class(value: Any, kind: str, where: str) -> Iterator[str]:
    known = next((getattr(place, kind) for place in MODELS if hasattr(place, kind)), None)
    if known is None or not isinstance(value, dict):
        yield f"{where}: {kind} is expected, got {value!r}"
        return
    names = {key: name for name, key in known.attribute_map.items()}
    given = {names[key]: item for key, item in value.items() if key in names}
    yield from (f"{where}.{key}: no such field in {kind}" for key in value.keys() - names.keys())
    try:
        known(**given)  # refuses what lacks something that is required
    except ValueError as error:
        yield f"{where}: {error}"
    for name, item in given.items():
        yield from misfits(item, known.openapi_types[name], f"{where}.{known.attribute_map[name]}")


MODELS = (kserve, kserve.models, kubernetes.client.models)

if __name__ == "__main__":
    for file in sys.argv[1:]:
        for manifest in yaml.safe_load_all(Path(file).read_text(encoding="utf-8")):
            for line in misfits(manifest, KINDS[manifest["kind"]], manifest["kind"]):
                print(line)
