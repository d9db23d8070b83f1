"""Make a release in dist/: wheel, sdist, SBOM and checksums, and check them: `make release`.

1. Wheel and sdist are built twice with the last commit's time (SOURCE_DATE_EPOCH), and have to be equal bit for bit.
2. The wheel is installed into an empty environment for each Python of 3.11 to 3.14 that is found, and tried out.
3. The SBOM (CycloneDX) lists what such an environment holds; pip-audit compares it with the advisory database.
4. `SHA256SUMS` covers all files.

Exit status: 0 all well; 1 something is wrong; 3 all well, except that the advisory database could not be asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
NOT_AUDITED = 3
_AUDIT_TIMEOUT_S = 300
_UNREACHABLE = (
    "ConnectionError",
    "ConnectionTimeout",
    "ServiceError",
    "HTTPError",
    "Max retries",
    "timed out",
    "Could not",
)
SMOKE = """
import sys
import sfumato
from sfumato.artifacts import shipped
from sfumato.device import Obfuscator
image = shipped.samples()[0].pixels
payload = Obfuscator(shipped.obfuscator_bundle()).obfuscate(image)
assert payload.tensor.shape == (3, 32, 32), payload.tensor.shape
assert not {"torch", "starlette"} & set(sys.modules), "the device's side loads more than it needs"
print(f"sfumato {sfumato.__version__}, Python {sys.version.split()[0]}: an image was obfuscated")
"""


class Failed(Exception):
    """A step failed; the message says what to do."""


def main() -> int:
    """Make the release; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-smoke", action="store_true", help="leave the installations out")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    try:
        files = build_twice(out)
        wheel = next(file for file in files if file.suffix == ".whl")
        if not given.no_smoke:
            smoke(wheel)
        audited = bill_of_materials(wheel, out)
    except Failed as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    checksums(out)
    print(f"-> {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    return 0 if audited else NOT_AUDITED


def build_twice(out: Path) -> list[Path]:
    """Build wheel and sdist of the last commit twice, in two folders; put them there if they are equal.

    Raises:
        Failed: the build fails, or the two differ.
    """
    commit, epoch = _said(["git", "log", "-1", "--format=%H %ct"]).split()
    if _said(["git", "status", "--porcelain"]).strip():
        print("release: there are changes that are not committed; the release is of the last commit", file=sys.stderr)
    built = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            tree = Path(folder) / turn / f"tree-of-the-{turn}-build"  # paths must not get into the files
            _run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(tree)])
            _run(["git", "-C", str(tree), "checkout", "--quiet", "--detach", commit])
            made = Path(folder) / turn / "dist"
            environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": str(len(built))}
            _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(tree)], env=environment)
            built.append({file.name: file.read_bytes() for file in made.iterdir()})
        first, second = built
        differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        if differing:
            raise Failed(f"two builds differ in {', '.join(differing)}: something depends on the time or the place")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, content in first.items():
        (out / name).write_bytes(content)
        print(f"{name}: two builds are equal, {len(content):,} bytes")
    return [out / name for name in first]


def pythons() -> dict[str, str]:
    """Return the interpreters of `VERSIONS` on this machine: on the path, or of pyenv."""
    found = {}
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}") or ""]
        candidates += map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
        if sys.version.startswith(f"{version}."):
            candidates.append(sys.executable)
        for candidate in filter(None, candidates):
            asked = subprocess.run([candidate, "-c", "import ensurepip, venv"], capture_output=True)
            if asked.returncode == 0:
                found[version] = candidate
                break
    return found


def smoke(wheel: Path) -> None:
    """Install the wheel into an empty environment of each Python and try it out.

    Raises:
        Failed: it cannot be installed or does not work, or there is no Python at all.
    """
    found = pythons()
    for version in VERSIONS:
        if version not in found:
            print(f"Python {version}: left out, as it is not on this machine")
            continue
        with tempfile.TemporaryDirectory() as folder:
            python = _environment(found[version], Path(folder) / "env", str(wheel))
            # Away from the tree, so that the wheel's package is what is imported.
            print(_said([python, "-I", "-c", SMOKE], cwd=folder).strip())
            _run([python, "-m", "pip", "install", "--quiet", f"{wheel}[serve]"], cwd=folder)
            _said([python, "-I", "-m", "sfumato", "demo"], cwd=folder)
            print("  with [serve]: sfumato demo has run")
    if not found:
        raise Failed(f"there is no Python of {', '.join(VERSIONS)} with venv on this machine")


def bill_of_materials(wheel: Path, out: Path) -> bool:
    """Write the SBOM of an environment with the wheel and its extra `serve`; return whether it could be audited.

    Raises:
        Failed: an installed package has a known vulnerability.
    """
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(sys.executable, Path(folder) / "env", f"{wheel}[serve]")
        _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools"])
        sbom = out / f"{wheel.name.split('-py3')[0]}.cdx.json"
        command = [str(tools / "cyclonedx-py"), "environment", python, "--output-reproducible", "--sv", "1.6"]
        _run([*command, "--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(sbom)])
        print(f"{sbom.name}: what an environment with [serve] holds")
        site = next((Path(folder) / "env").glob("lib/python*/site-packages"))
        command = [str(tools / "pip-audit"), "--path", str(site), "--progress-spinner", "off", "--timeout", "20"]
        command += ["--format", "json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_AUDIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"pip-audit: NOT AUDITED, no answer within {_AUDIT_TIMEOUT_S} s", file=sys.stderr)
            return False
    return _audited(done)


def _audited(done: subprocess.CompletedProcess[str]) -> bool:
    """Say what pip-audit found; return whether it could ask the advisory database about every package but ours."""
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (KeyError, TypeError, ValueError):
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1][:200]
        if any(sign in done.stderr for sign in _UNREACHABLE):
            print(
                f"pip-audit: NOT AUDITED, exit code {done.returncode}: the advisory database cannot be reached from "
                f"here ({said}); run it again where it can",
                file=sys.stderr,
            )
            return False
        raise Failed(f"pip-audit: exit code {done.returncode}: {said}") from None
    found = [f"{one['name']} {one['version']}: {vuln['id']}" for one in packages for vuln in one.get("vulns", [])]
    if found:
        raise Failed(f"pip-audit: exit code {done.returncode}, known vulnerabilities: {', '.join(found)}")
    # It ends with 0, too, where the database answers about no package.
    skipped = [one for one in packages if "skip_reason" in one and one["name"] != "sfumato"]
    if skipped or done.returncode:
        reason = f"; of {skipped[0]['name']} it says: {skipped[0]['skip_reason'][:200]}" if skipped else ""
        print(
            f"pip-audit: NOT AUDITED, exit code {done.returncode}: {len(skipped)} of {len(packages)} packages were "
            f"left out{reason}; run it again where the advisory database can be reached",
            file=sys.stderr,
        )
        return False
    print(f"pip-audit: exit code 0, no known vulnerabilities in {sum('vulns' in one for one in packages)} packages")
    return True


def checksums(out: Path) -> None:
    """Write SHA256SUMS, as `sha256sum --check` reads it."""
    files = sorted(file for file in out.iterdir() if file.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _environment(python: str, folder: Path, what: str) -> str:
    """Make an empty environment, install a wheel into it, and return its interpreter."""
    _run([python, "-m", "venv", str(folder)])
    made = str(folder / "bin" / "python")
    _run([made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what])
    return made


def _run(command: Sequence[str], **options: object) -> None:
    _said(command, **options)


def _said(command: Sequence[str], **options: object) -> str:
    """Return what a command prints; raise `Failed` with all of it if it fails."""
    settings = {"cwd": ROOT, "capture_output": True, "text": True, **options}
    done = subprocess.run(list(command), **settings)  # type: ignore[call-overload]
    if done.returncode:
        raise Failed(f"{' '.join(command[:6])} ... ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
