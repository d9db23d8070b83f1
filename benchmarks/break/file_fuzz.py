"""Mutated bundles and checkpoints: each is loaded as it was meant, or refused with an error of ours.

A file whose hash does not fit has to be refused. Where an attacker has renewed the hash, ONNX Runtime and safetensors
see the mutated file; then nothing may be raised but an error of ours, and the image itself may not come out.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isolated import Judge
from mutate import flipped, mutated_bytes, mutated_json, truncated
from outcomes import ACCEPTED, REFUSED, Judged, told

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, MANIFEST, OBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.device import Obfuscator
from sfumato.errors import BundleError, SfumatoError
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.models.checkpoint import load_checkpoint, save_checkpoint
from sfumato.lab.models.rebuild import rebuilt
from sfumato.lab.sweep.schema import read_frontier

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
import tiny

_BYTE_MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped bit": flipped,
    "truncated": truncated,
    "bytes": mutated_bytes,
}
_PARTS = frozenset({"identity", "task", "optimizer", "step"})
RUNS: list[str] = []
"""What code in a checkpoint would append to, if it were run."""


class _Code:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import file_fuzz; file_fuzz.RUNS.append('code ran')",)


def bundle_judge(folder: Path) -> Judge:
    """Return the judge of bundles and of other JSON files, which works in a new folder below this one."""
    folder.mkdir(parents=True, exist_ok=True)
    obfuscator, classifier = tiny.save_bundles(folder / "tiny", threshold=0.9)
    weights = folder / "weights"
    shutil.copytree(shipped.papers_obfuscator_bundle(), weights)
    for spare in ("deobfuscator.onnx", "deobfuscator.safetensors"):
        (weights / spare).unlink(missing_ok=True)
    _renew_hashes(weights)
    audit = next(iter(sorted((ROOT / "results" / "audits").glob("*.json"))))
    frontier = ROOT / "src" / "sfumato" / "apps" / "studio" / "frontier.json"
    others = [(shutil.copy(audit, folder / "audit.json"), AuditResult.read)]
    others.append((shutil.copy(frontier, folder / "frontier.json"), read_frontier))
    cases: dict[str, tuple[int, Judge]] = {
        "bundle.json, JSON": (4, partial(_manifest, obfuscator.path, "JSON")),
        "bundle.json, bytes": (2, partial(_manifest, obfuscator.path, "bytes")),
        "ONNX": (2, partial(_old_hash, obfuscator.path)),
        "ONNX, hash renewed": (4, partial(_obfuscator_onnx, obfuscator.path)),
        "served ONNX, hash renewed": (3, partial(_classifier_onnx, classifier.path)),
        "safetensors, hash renewed": (1, partial(_weights, weights)),
        "other JSON": (2, partial(_other_json, others)),
    }
    names = [name for name, (share, _) in cases.items() for _ in range(share)]

    def judged(rng: random.Random) -> Judged:
        name = rng.choice(names)
        return cases[name][1](rng)

    return judged


def _renew_hashes(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = [name for name in manifest["files"] if (folder / name).is_file()]
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _with_file(name: str, file: Path, content: bytes, use: Callable[[], str]) -> Judged:
    """Judge what `use` does while a file has this content; it returns what is wrong, or ""."""
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        wrong = use()
        return Judged(name, "wrong", wrong, content) if wrong else Judged(name, ACCEPTED)
    except SfumatoError as error:
        return Judged(name, REFUSED) if str(error).strip() else Judged(name, "wrong", "an error without words", content)
    except Exception as error:
        return Judged(name, "unexpected error", told(error), content)
    finally:
        file.write_bytes(before)


def _manifest(folder: Path, how: str, rng: random.Random) -> Judged:
    file = folder / MANIFEST
    content = file.read_bytes()
    if how == "JSON":
        changed = mutated_json(rng, json.loads(content))
    else:
        changed = rng.choice(list(_BYTE_MUTATIONS.values()))(rng, content)

    def use() -> str:
        bundle = Bundle.load(folder)
        bundle.to_json()
        if bundle.kind == "obfuscator":
            _obfuscated(bundle)
        return ""

    return _with_file(f"bundle.json, {how}", file, changed, use)


def _old_hash(folder: Path, rng: random.Random) -> Judged:
    file = folder / OBFUSCATOR_ONNX
    content = file.read_bytes()
    changed = rng.choice(list(_BYTE_MUTATIONS.values()))(rng, content)

    def use() -> str:
        Bundle.load(folder)
        return "" if changed == content else "a changed file is not noticed"

    return _with_file("ONNX", file, changed, use)


def _forged(folder: Path, name: str, file: str, rng: random.Random, use: Callable[[], str]) -> Judged:
    """Judge a bundle with a mutated file and its hash."""
    changed = rng.choice(list(_BYTE_MUTATIONS.values()))(rng, (folder / file).read_bytes())
    manifest = (folder / MANIFEST).read_text(encoding="utf-8")

    def with_hash() -> str:
        _renew_hashes(folder)
        return use()

    try:
        return _with_file(name, folder / file, changed, with_hash)
    finally:
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")


def _obfuscated(bundle: Bundle) -> str:
    """Run a bundle's obfuscator; return what is wrong with what would be sent."""
    size = bundle.preprocessing
    if size.height * size.width > 10**6:
        raise BundleError("too large to be tried")
    image = np.random.default_rng(0).integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    payload = Obfuscator(bundle).obfuscate(image).tensor
    if not np.isfinite(payload).all():
        return "the payload is not finite"
    unit = image.transpose(2, 0, 1).astype(np.float32) / 255
    same = payload.shape == unit.shape and np.abs(payload - unit).max() < 1e-3
    return "the payload is the image" if same else ""


def _obfuscator_onnx(folder: Path, rng: random.Random) -> Judged:
    return _forged(folder, "ONNX, hash renewed", OBFUSCATOR_ONNX, rng, lambda: _obfuscated(Bundle.load(folder)))


def _classifier_onnx(folder: Path, rng: random.Random) -> Judged:
    from sfumato.cloud.dataplane import ServedModel

    def use() -> str:
        ServedModel(folder)
        return ""

    return _forged(folder, "served ONNX, hash renewed", CLASSIFIER_ONNX, rng, use)


def _weights(folder: Path, rng: random.Random) -> Judged:
    def use() -> str:
        net = rebuilt(Bundle.load(folder))
        if net is None:
            return "weights that are there are not found"
        with torch.no_grad():
            net(torch.zeros(1, 3, 32, 32))
        return ""

    return _forged(folder, "safetensors, hash renewed", OBFUSCATOR_WEIGHTS, rng, use)


def _other_json(files: list[tuple[Path, Callable[[Path], Any]]], rng: random.Random) -> Judged:
    file, read = rng.choice(files)
    content = file.read_bytes()
    if rng.random() < 0.7:
        changed = mutated_json(rng, json.loads(content))
    else:
        changed = rng.choice(list(_BYTE_MUTATIONS.values()))(rng, content)

    def use() -> str:
        read(file)
        return ""

    return _with_file("other JSON", file, changed, use)


def checkpoint_judge(folder: Path) -> Judge:
    """Return the judge of checkpoints: whatever bits change, the state is the saved one, or it is refused."""
    warnings.simplefilter("ignore")  # torch's, of pickles that it then refuses
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checkpoint.pt"
    state = {
        "identity": json.dumps({"recipe": {"kind": "sketch"}}),
        "task": {f"layer{i}.weight": torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(6)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(8, 16)}}, "param_groups": [{}]},
        "step": 7,
    }
    save_checkpoint(file, state)
    content, wanted = file.read_bytes(), _flat(state)
    kinds = {**_BYTE_MUTATIONS, "zeroed block": _zeroed, "code": lambda rng, data: _with_code(data, rng)}

    def judged(rng: random.Random) -> Judged:
        name = rng.choice(list(kinds))
        changed = kinds[name](rng, content)

        def use() -> str:
            loaded = load_checkpoint(file, _PARTS)
            if RUNS:
                RUNS.clear()
                return "code in the file was run"
            return "" if _flat(loaded) == wanted else "a damaged state is loaded"

        return _with_file(name, file, changed, use)

    return judged


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return a state's values by their place; tensors as their bytes."""
    if isinstance(value, dict):
        return {key: item for k, v in value.items() for key, item in _flat(v, f"{name}/{k!r}").items()}
    if isinstance(value, list):
        return {key: item for k, v in enumerate(value) for key, item in _flat(v, f"{name}/{k}").items()}
    return {name: (str(value.dtype), value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value}


def _zeroed(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((16, 64, 512))
    at = rng.randrange(max(1, len(data) - size))
    return data[:at] + bytes(size) + data[at + size :]


def _with_code(data: bytes, rng: random.Random) -> bytes:
    """Return a checkpoint whose pickle runs code: alone, or in the archive that torch writes."""
    code = pickle.dumps({"identity": _Code(), "task": {}, "optimizer": {}, "step": rng.randrange(100)})
    if rng.random() < 0.3:
        return code
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, code if entry.filename.endswith("data.pkl") else old.read(entry))
    return out.getvalue()
