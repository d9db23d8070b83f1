"""Try to break sfumato: mutated messages, requests, bundles and checkpoints, and endpoints that misbehave.

`make break` runs this and writes results/break.json and docs/break-test.md; a failing input is saved in build/break.
All inputs follow from the seed: `run.py --only codec --case 1234` tries a case again. `--scale 0.001` is short, and
tests/test_break.py, which `make test` runs, still shorter. It ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import break_page
import codec_fuzz
import described
import fault_matrix
import file_fuzz
import http_fuzz
from isolated import judged_apart
from outcomes import Part

from sfumato.artifacts.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
INPUTS = {"codec": 1_000_000, "http": 100_000, "bundles": 10_000, "checkpoints": 10_000}
GUIDED_RUNS = 1_000_000
DESCRIBED_EXAMPLES = 200
PARTS = (*INPUTS, "guided", "described", "faults")
_GUIDED = ROOT / ".interop" / "atheris" / "bin" / "python"


def tried(name: str, cases: range, seed: int, examples: Path) -> Part:
    """Try these cases of one part of `INPUTS`."""
    part = Part(name, seed)
    if name == "http":
        http_fuzz.tried(part, cases, examples)
        return part
    with tempfile.TemporaryDirectory() as folder:
        make: dict[str, Callable[[], Any]] = {
            "codec": codec_fuzz.judge,
            "bundles": partial(file_fuzz.bundle_judge, Path(folder)),
            "checkpoints": partial(file_fuzz.checkpoint_judge, Path(folder)),
        }
        judged_apart(part, make[name], cases, examples=examples)
    return part


def guided(seed: int, runs: int, examples: Path) -> dict[str, Any]:
    """Return what the coverage-guided fuzzer found; `skipped` says why if it is not installed."""
    if not _GUIDED.exists():
        return {"skipped": f"there is no {_GUIDED.relative_to(ROOT)}; `make break` installs it where it can be had"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number, example in enumerate(codec_fuzz.corpus()):
            (folder / "corpus" / str(number)).write_bytes(example)
        script = Path(__file__).parent / "guided.py"
        done = subprocess.run([_GUIDED, script, str(runs), str(seed), name], capture_output=True, text=True)
        for crash in [file for kind in ("crash", "timeout", "oom") for file in folder.glob(f"{kind}-*")]:
            examples.mkdir(parents=True, exist_ok=True)
            shutil.copy(crash, examples / f"guided-{crash.name}")
        said = folder / "guided.json"
        found = json.loads(said.read_text()) if said.exists() else {"runs": 0, "outcomes": {}, "failure": "no report"}
    if done.returncode and not found["failure"]:
        found["failure"] = f"exit code {done.returncode}"
    return {**found, "passed": not found["failure"]}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the inputs; 1 is the full form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="other parts are kept as they are")
    parser.add_argument("--case", type=int, help="try one case of the parts again, and write no results")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "break.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "break-test.md")
    parser.add_argument("--examples", type=Path, default=ROOT / "build" / "break", help="folder for failing inputs")
    given = parser.parse_args(arguments)
    if given.case is not None:
        for name in set(given.only) & set(INPUTS):
            print(tried(name, range(given.case, given.case + 1), given.seed, given.examples).to_json())
        return 0
    result = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() and given.only != PARTS else {}
    result.setdefault("parts", {})
    begun = time.perf_counter()
    for name in given.only:
        print(f"{name} ...", flush=True)
        _add(result, name, given)
    result |= {"schema": "sfumato.break/1", "failed": failed(result)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    given.page.write_text(break_page.written(result), encoding="utf-8")
    print(f"{result['failed']} failed, {time.perf_counter() - begun:.0f} s -> {given.out}, {given.page}")
    return int(result["failed"] > 0)


def _add(result: dict[str, Any], name: str, given: argparse.Namespace) -> None:
    """Run one part and put what it found in its place."""
    scaled = partial(_scaled, given.scale)
    measured = {"measured": provenance().to_json(), "scale": given.scale}
    if name in INPUTS:
        part = tried(name, range(scaled(INPUTS[name])), given.seed, given.examples)
        result["parts"][name] = {**part.to_json(), **measured}
        shown = {failure.detail: failure.count for failure in part.failures}
        print(f"  {part.inputs:,} inputs, {part.seconds:.0f} s, {dict(part.totals())} {shown or ''}", flush=True)
        return
    if name == "faults":
        every = 1 if given.scale >= 0.1 else 8
        result[name] = {**fault_matrix.matrix(list(fault_matrix.cells(every=every))), **measured}
        print(f"  {len(result[name]['cells'])} cells, {result[name]['bad']} bad", flush=True)
        return
    if name == "guided":
        result[name] = guided(given.seed, scaled(GUIDED_RUNS), given.examples)
    else:
        result[name] = described.checked(given.seed, scaled(DESCRIBED_EXAMPLES))
    result[name] |= measured
    print(f"  {result[name].get('skipped') or result[name]['passed']}", flush=True)


def failed(result: dict[str, Any]) -> int:
    """Return how many inputs failed in all parts, and how many cells of the matrix are bad."""
    inputs = sum(failure["count"] for part in result["parts"].values() for failure in part["failures"])
    tools = sum(not result[name].get("passed", True) for name in ("guided", "described") if name in result)
    return inputs + tools + int(result.get("faults", {}).get("bad", 0))


def _scaled(scale: float, count: int) -> int:
    return max(20, round(count * scale))


if __name__ == "__main__":
    sys.exit(main())
