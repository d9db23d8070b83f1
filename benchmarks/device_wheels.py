"""Which wheels the device's side needs on other platforms than this one, and how large they are. Nothing is run there.

`python benchmarks/device_wheels.py` writes results/device-wheels.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance

PLATFORMS = {
    "Linux on 64-bit ARM": "manylinux_2_28_aarch64",
    "Linux on 32-bit ARM": "manylinux_2_31_armv7l",
}


def main(out: Path = Path("results/device-wheels.json")) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"device": project["dependencies"], "video": project["optional-dependencies"]["video"]}
    found: dict[str, Any] = {}
    for name, tag in PLATFORMS.items():
        found[name] = {"tag": tag} | {extra: _wheels(tag, wanted) for extra, wanted in needed.items()}
        print(name, {extra: found[name][extra].get("unpacked_mb", "missing") for extra in needed})
    write_json(
        out,
        {
            "what": "wheels of the device's dependencies for other platforms; unpacked, they were not run there",
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "platforms": found,
            "measured": provenance().to_json(),
        },
    )


def _wheels(tag: str, wanted: list[str]) -> dict[str, Any]:
    """Return the wheels that pip would install, or what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", folder]
        done = subprocess.run(
            [*pip, "--platform", tag, "--only-binary", ":all:", *wanted], capture_output=True, text=True, check=False
        )
        if done.returncode:
            failed = [line for line in done.stderr.splitlines() if line.startswith("ERROR: No matching")]
            return {"missing": [line.rsplit(" ", 1)[-1] for line in failed] or ["pip failed"]}
        wheels = {file.name: _sizes(file) for file in sorted(Path(folder).glob("*.whl"))}
    return {
        "download_mb": round(sum(size["download_mb"] for size in wheels.values()), 1),
        "unpacked_mb": round(sum(size["unpacked_mb"] for size in wheels.values()), 1),
        "wheels": wheels,
    }


def _sizes(wheel: Path) -> dict[str, float]:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    return {"download_mb": round(wheel.stat().st_size / 1e6, 2), "unpacked_mb": round(unpacked / 1e6, 2)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
