"""docs/openapi.json against `sfumato serve`, with schemathesis in an environment of its own."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from http_fuzz import served
from http_requests import TOKEN

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / ".interop" / "schemathesis" / "bin" / "schemathesis"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,ignored_auth,unsupported_method"
)
_NAMES = {"model": ["tiny", "other"], "version": ["1", "2"]}


def checked(seed: int, examples: int) -> dict[str, Any]:
    """Return what schemathesis found; `skipped` says why if it is not installed.

    Args:
        seed: of the requests.
        examples: the most requests for each operation and phase.
    """
    if not PROGRAM.exists():
        return {"skipped": f"there is no {PROGRAM.relative_to(ROOT)}; `make break` installs it"}
    described = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    for path in described["paths"].values():
        for parameter in path.get("parameters", []):  # names that there are, or every request would end in a 404
            parameter["schema"]["enum"] = _NAMES[parameter["name"]]
    schemas = described["components"]["schemas"]
    schemas["Request"]["properties"]["inputs"]["items"] = copy.deepcopy(schemas["Tensor"])
    _limit(schemas["Request"])  # and no response
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, served() as server:
        document = Path(folder) / "openapi.json"
        document.write_text(json.dumps(described), encoding="utf-8")
        command = [str(PROGRAM), "run", str(document), "--url", f"http://{server.host}:{server.port}"]
        command += ["--checks", CHECKS, "--continue-on-failure", "--max-examples", str(examples), "--seed", str(seed)]
        command += ["--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing"]
        command += ["--generation-database", "none", "--no-color"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, timeout=3600, stdin=subprocess.DEVNULL
        )
    generated = re.search(r"([\d,]+) generated", done.stdout)
    return {
        "tool": _line(done.stdout, r"Schemathesis v?([\d.]+)"),
        "operations": sum(len(set(path) & {"get", "post"}) for path in described["paths"].values()),
        "requests": int(generated[1].replace(",", "")) if generated else 0,
        "seconds": time.perf_counter() - begun,
        "checks": CHECKS.split(","),
        "passed": done.returncode == 0,
        "output": "" if done.returncode == 0 else done.stdout[-6000:],
    }


def _limit(described: Any) -> None:
    """Keep generated lists and names short, which are slow to make and say no more."""
    if isinstance(described, dict):
        for key, most in (("maxItems", 2), ("maxLength", 64)):
            if key in described:
                described[key] = min(described[key], most)
        if described.get("type") == "array":
            described.setdefault("maxItems", 4)
    for item in described.values() if isinstance(described, dict) else described if isinstance(described, list) else ():
        _limit(item)


def _line(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return f"schemathesis {found[1]}" if found else "schemathesis"
