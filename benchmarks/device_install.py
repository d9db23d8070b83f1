"""Installs the device's side into a fresh environment and measures its size and its import.

`python benchmarks/device_install.py` writes results/device-install.json
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import venv
from pathlib import Path

import typer

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
NAMES = "from sfumato.device import Client, Obfuscator"
IMPORT = f"import time; t = time.perf_counter(); {NAMES}; print(time.perf_counter() - t)"
HEAVY = f"import sys; {NAMES}; print('torch' in sys.modules)"


def main(out: Path = Path("results/device-install.json")) -> None:
    """Measure, and write the results file."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        site = next(environment.glob("lib/python*/site-packages"))
        before = _bytes(site)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--constraint", str(ROOT / "constraints.txt"), str(ROOT)], check=True
        )
        size_mb = (_bytes(site) - before) / 1e6
        packages = sorted(path.name.split("-")[0] for path in site.glob("*.dist-info"))
        runs = [float(_say(python, IMPORT)) for _ in range(9)]
        torch_imported = _say(python, HEAVY)
    import_s = statistics.median(runs)
    write_json(
        out,
        {
            "what": "pip install of the device's side alone (no extras) into a fresh environment",
            "installed_mb": round(size_mb, 1),
            "import_sfumato_device_s": import_s,
            "imports_s": runs,
            "packages": packages,
            "torch_imported": torch_imported == "True",
            "measured": provenance().to_json(),
        },
    )
    print(f"{size_mb:.0f} MB, import sfumato.device {import_s:.3f} s -> {out}")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _say(python: str, code: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, env=clean)
    return done.stdout.strip()


if __name__ == "__main__":
    typer.run(main)
