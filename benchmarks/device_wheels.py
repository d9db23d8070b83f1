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

import typer

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance

PLATFORMS = {"Linux on 64-bit ARM": "aarch64", "Linux on 32-bit ARM": "armv7l"}
GLIBC = ("2_17", "2_28", "2_31", "2_34", "2_35", "2_36")
"""What wheels are built for, up to the C library of Debian 12; pip takes each as a platform of its own."""
PYTHONS = ("3.11", "3.13")
"""Of Debian 12 and 13, on which Raspberry Pi OS is built."""
EXTRAS = ("serve", "sign", "video")


def main(out: Path = Path("results/device-wheels.json")) -> None:
    """Measure, and write the results file."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra: project["optional-dependencies"][extra] for extra in EXTRAS}
    needed = {"device": project["dependencies"], **extras}
    found: dict[str, Any] = {}
    for name, machine in PLATFORMS.items():
        tags = [f"manylinux_{glibc}_{machine}" for glibc in GLIBC]
        found[name] = {"tags": tags, "pythons": {}}
        for python in PYTHONS:
            wheels = {extra: _wheels(tags, python, wanted) for extra, wanted in needed.items()}
            found[name]["pythons"][python] = wheels
            print(name, python, {extra: wheels[extra].get("unpacked_mb", "missing") for extra in needed})
    write_json(
        out,
        {
            "what": "wheels of the device's dependencies for other platforms; unpacked, they were not run there",
            "platforms": found,
            "measured": provenance().to_json(),
        },
    )


def _wheels(tags: list[str], python: str, wanted: list[str]) -> dict[str, Any]:
    """Return the wheels that pip would install, or what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", folder]
        where = ["--python-version", python, "--only-binary", ":all:"]
        where += [word for tag in tags for word in ("--platform", tag)]
        done = subprocess.run([*pip, *where, *wanted], capture_output=True, text=True, check=False)
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
    typer.run(main)
