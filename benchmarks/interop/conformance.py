"""The protocol's OpenAPI description against `sfumato serve`, with schemathesis.

The description is the one that MLServer's wheel carries (Apache-2.0), read where it is installed. Only what belongs to
the protocol's version 2 is taken, and the names of models and versions are given, so that not every request ends in a
404. Its one mistake, a type "bytes" that JSON does not have, is made "string", or no request to `infer` could be made.
"""

from __future__ import annotations

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from servers import NAME

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = 50
_BEYOND = re.compile(r"_stream$|/generate")


def checked(url: str, environments: Path, folder: Path) -> dict[str, Any]:
    """Return the number of requests, and the deviations from the description."""
    source = next(environments.glob("mlserver/lib/python*/site-packages/mlserver/rest/openapi/dataplane.json"))
    described = json.loads(
        json.dumps(json.loads(source.read_text(encoding="utf-8"))).replace('"type": "bytes"', '"type": "string"')
    )
    _narrow(described)
    document, report = folder / "openapi.json", folder / "report.json"
    document.write_text(json.dumps(described), encoding="utf-8")
    program = environments / "schemathesis" / "bin" / "schemathesis"
    command = [str(program), "run", str(document), "--url", url, "--checks", CHECKS, "--continue-on-failure"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "0", "--generation-database", "none", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--report", "json", "--report-json-path", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    wheel = next(source.parents[3].glob("mlserver-*.dist-info")).name.removesuffix(".dist-info")
    site = next((environments / "schemathesis").glob("lib/python*/site-packages"))
    (version,) = (d.version for d in metadata.distributions(path=[str(site)]) if d.name.lower() == "schemathesis")
    return {
        "tool": f"schemathesis {version}",
        "description": f"{described['info']['title']} {described['info']['version']}, from {wheel}",
        "operations": sum(len(set(item) & {"get", "post"}) for item in described["paths"].values()),
        "checks": CHECKS.split(","),
        "examples_per_operation": EXAMPLES,
        "passed": done.returncode == 0,
        "output": done.stdout[-6000:],
    }


def _narrow(described: dict[str, Any]) -> None:
    for path in [path for path in described["paths"] if _BEYOND.search(path)]:
        del described["paths"][path]
    for path, item in described["paths"].items():
        for parameter in item.get("parameters", []):
            names = [NAME] if parameter["name"] == "model_name" else ["1"]
            parameter["schema"]["enum"] = [*names, "other"]
        for method in set(item) & {"get", "post"}:
            if "{" in path:  # not said everywhere: a model may be missing
                item[method]["responses"].setdefault("404", {"description": "no such model"})
