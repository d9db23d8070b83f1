"""`sfumato.js` as an npm package: what is in it, and that it runs in Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sfumato

HERE = Path(__file__).parent
PACKAGE = Path(sfumato.__file__).parent / "apps" / "studio" / "js"
MANIFEST = json.loads((PACKAGE / "package.json").read_text(encoding="utf-8"))


def node_version() -> int:
    node = shutil.which("node")
    if node is None:
        return 0
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return int(said.removeprefix("v").split(".")[0])


@pytest.mark.skipif(node_version() < 20, reason="needs Node 20")
def test_it_runs_in_node() -> None:
    command = ["node", "--test", "--test-reporter=tap", str(HERE / "sfumato.test.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert count is not None and int(count[1]) > 10


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_tarball_has_all_that_it_imports_and_no_more() -> None:
    command = ["npm", "pack", "--dry-run", "--json", "--offline"]
    said = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=120).stdout
    (tarball,) = json.loads(said)
    packed = {entry["path"] for entry in tarball["files"]}
    assert packed == {file.name for file in PACKAGE.iterdir()}
    assert {"sfumato.js", "sfumato.d.ts", "package.json", "README.md"} <= packed
    for name in packed:
        if name.endswith(".js"):
            imported = re.findall(r'from "\./([^"]+)"', (PACKAGE / name).read_text(encoding="utf-8"))
            assert set(imported) <= packed


def test_it_has_the_version_of_the_python_package() -> None:
    assert MANIFEST["version"] == sfumato.__version__


def test_every_name_that_it_exports_has_a_type() -> None:
    module = (PACKAGE / "sfumato.js").read_text(encoding="utf-8")
    types = (PACKAGE / "sfumato.d.ts").read_text(encoding="utf-8")
    exported = set(re.findall(r"^export (?:class|function|const) (\w+)", module, re.MULTILINE))
    for names in re.findall(r"^export \{([^}]*)\}", module, re.MULTILINE):
        exported |= {name.strip() for name in names.split(",")}
    declared = set(
        re.findall(r"^export (?:declare )?(?:abstract )?(?:class|function|const) (\w+)", types, re.MULTILINE)
    )
    assert {"Client", "loadBundle", "Bundle", "EndpointError"} <= exported == declared
