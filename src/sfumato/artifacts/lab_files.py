"""What the lab keeps of an obfuscator, apart from its bundle, so that no device and no server gets it.

A bundle has what a device runs and the cloud decodes with. The torch weights, which attackers and later trainings need,
and the deobfuscator, from which training images may be read, lie in the lab's folder: `lab/` beside `bundle/`, or
`NAME-lab/` beside a bundle of another name. Its `lab.json` says which obfuscator it belongs to and has the SHA-256 of
each file. Earlier versions put these files into the bundle itself; they are found there, too.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import (
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    DEOBFUSCATOR_WEIGHTS,
    OBFUSCATOR_ONNX,
    Bundle,
)
from sfumato.artifacts.files import file_sha256, read_json, whole_folder, write_json
from sfumato.errors import BundleError

LAB_MANIFEST = "lab.json"
DEVICE_FILES = (OBFUSCATOR_ONNX, DECODER_ONNX)
"""All that a device, or the cloud of the split form, needs of an obfuscator's bundle."""
_SCHEMA = "sfumato.lab/1"


def lab_folder(bundle: Path) -> Path:
    """Return the lab's folder for the bundle at that path; it need not exist."""
    bundle = bundle.resolve()
    return bundle.with_name("lab" if bundle.name == "bundle" else f"{bundle.name}-lab")


def new_lab_folder(bundle: Path) -> Path:
    """Empty the lab's folder for the bundle at that path, or create it.

    Raises:
        BundleError: it holds something else, or the disk refuses.
    """
    folder = lab_folder(bundle)
    if folder.exists() and any(folder.iterdir()) and not (folder / LAB_MANIFEST).is_file():
        raise BundleError(f"{folder}, where the lab's files of {bundle} go, holds something else; move it away")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror or error}") from error
    _write(folder, "")
    return folder


def save_lab(bundle: Bundle) -> None:
    """Hash what lies in the lab's folder of a saved bundle, and write `lab.json`.

    Raises:
        BundleError: the disk refuses.
    """
    _write(lab_folder(bundle.path), bundle.files[OBFUSCATOR_ONNX])


def _write(folder: Path, obfuscator: str) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors"))
    files = {name: file_sha256(folder / name) for name in names}
    write_json(folder / LAB_MANIFEST, {"schema": _SCHEMA, "obfuscator": obfuscator, "files": files})


def find_lab_file(bundle: Bundle, name: str) -> Path | None:
    """Return a file that only the lab needs, from the lab's folder or the bundle itself; None if neither has it.

    Raises:
        BundleError: the lab's folder belongs to another obfuscator, or is damaged.
    """
    if name in bundle.files:
        return bundle.file(name)
    folder = lab_folder(bundle.path)
    if not (folder / LAB_MANIFEST).is_file():
        return None
    try:
        about = read_json(folder / LAB_MANIFEST)
        schema, owner, files = about["schema"], about["obfuscator"], dict(about["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / LAB_MANIFEST} cannot be read: {error!r:.100}; train again") from error
    if schema != _SCHEMA:
        raise BundleError(f"{folder / LAB_MANIFEST} has schema {schema!r:.60}; this version reads {_SCHEMA!r}")
    if owner != bundle.files.get(OBFUSCATOR_ONNX):
        raise BundleError(f"{folder} belongs to another obfuscator than {bundle.path}; move it away, or train again")
    if name not in files:
        return None
    if not (folder / name).is_file() or file_sha256(folder / name) != files[name]:
        raise BundleError(f"{folder / name} is missing, or was changed or damaged: copy the whole folder again")
    return folder / name


def lab_file(bundle: Bundle, name: str) -> Path:
    """Return a file that only the lab needs.

    Raises:
        BundleError: as `find_lab_file`, or there is none.
    """
    found = find_lab_file(bundle, name)
    if found is None:
        raise BundleError(
            f"{bundle.path} has no {name}, nor has {lab_folder(bundle.path)}: it is a device's bundle; use the one in "
            "the folder of its training"
        )
    return found


def write_device_bundle(bundle: Bundle, folder: Path, *, overwrite: bool = False) -> Bundle:
    """Write a copy of an obfuscator's bundle that has what a device needs, and nothing else.

    Raises:
        BundleError: the folder exists and is not to be overwritten or holds something else, or the disk refuses.
    """
    if folder.resolve() == bundle.path.resolve():
        raise BundleError(f"{folder} is the bundle itself; give another folder")
    if folder.exists():
        if not overwrite:
            raise BundleError(f"{folder} exists; --overwrite replaces it")
        Bundle.load(folder, kind="obfuscator")  # an error, rather than the loss of something else
    with whole_folder(folder, BundleError) as partial:
        for name in DEVICE_FILES:
            if name in bundle.files:
                shutil.copyfile(bundle.file(name), partial / name)
        replace(bundle, path=partial).save()
    return Bundle.load(folder, kind="obfuscator")


def refuse_deobfuscator(bundle: Bundle) -> None:
    """Refuse to hand out a bundle from which training images may be read; shipped samples may be.

    Raises:
        BundleError: it has a deobfuscator.
    """
    found = next((name for name in (DEOBFUSCATOR_ONNX, DEOBFUSCATOR_WEIGHTS) if name in bundle.files), None)
    if found is not None and not shipped.is_shipped(bundle.files):
        raise BundleError(
            f"{bundle.path} has {found}, from which training images may be read, so it is not handed out; make a "
            f"bundle without it: sfumato export --device {bundle.path} -o {bundle.path.resolve().name}-device"
        )
