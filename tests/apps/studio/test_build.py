"""What is built into the package is what was pinned, or nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import brotli
import pytest

ROOT = Path(__file__).parents[3]
CONTENTS = {"ort.wasm.bundle.min.mjs": b"export {};", "ort-wasm-simd-threaded.wasm": b"\0asm", "other.mjs": b"other"}


class App:
    """What hatchling says to its user."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs a package of ours, and writes down how it was called."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, content in CONTENTS.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp {package} onnxruntime-web.tgz\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return package


def hook(build: ModuleType, root: Path) -> tuple[App, Path]:
    (root / "src" / "sfumato" / "apps" / "studio").mkdir(parents=True, exist_ok=True)
    app = App()
    build.RuntimeHook(str(root), {}, None, None, str(root), "wheel", app).initialize("editable", {})
    return app, root / "src" / "sfumato" / "apps" / "studio" / "onnxruntime-web"


def test_the_pinned_package_is_stored_compressed_once(
    build: ModuleType, npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = base64.b64encode(hashlib.sha512(npm.read_bytes()).digest()).decode()
    monkeypatch.setattr(build, "INTEGRITY", f"sha512-{digest}")
    for _ in range(2):
        app, folder = hook(build, tmp_path)
        assert app.warnings == []
    for name in build.FILES:
        assert gzip.decompress((folder / f"{name}.gz").read_bytes()) == CONTENTS[name]
        assert brotli.decompress((folder / f"{name}.br").read_bytes()) == CONTENTS[name]
    assert not list(folder.glob("other*"))
    assert json.loads((folder / "version.json").read_text())["package"] == build.PACKAGE
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith(f"pack {build.PACKAGE} --ignore-scripts")


def test_another_package_is_refused(build: ModuleType, npm: Path, tmp_path: Path) -> None:
    app, folder = hook(build, tmp_path)
    assert "without `sfumato studio`" in app.warnings[0]
    assert build.INTEGRITY in app.warnings[0]
    assert not folder.exists()


def test_without_npm_the_package_is_built_without_it(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    app, folder = hook(build, tmp_path)
    assert "npm is not installed" in app.warnings[0]
    assert not folder.exists()


def test_an_npm_that_fails_is_told(build: ModuleType, npm: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\nexit 1\n")
    app, _ = hook(build, tmp_path)
    assert "returned non-zero exit status 1" in app.warnings[0]
