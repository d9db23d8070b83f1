"""Hashes of ONNX files: the identity of a classifier, and of a bundle's files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sfumato.artifacts.external_data import external_data, external_files
from sfumato.artifacts.files import file_sha256
from sfumato.errors import BundleError


def fingerprint(onnx_path: Path) -> str:
    """Return the identity of a served classifier: `sha256:<hex>` of the ONNX file that is served.

    It holds for any ONNX file, whatever exported it, and a server can state it without knowing anything
    of obfuscation. Where an ONNX file keeps weights in other files, it is the SHA-256 of these lines, joined by
    newlines: the hash of the ONNX file, then, in the order of their names, `<hash> <name>` of each other file.

    Raises:
        BundleError: a file with weights is missing, or lies outside the folder.
        OSError: a file cannot be read.
    """
    own, others = file_sha256(onnx_path), external_files(onnx_path)
    if others:
        lines = [own, *(f"{file_sha256(file)} {name}" for name, file in others.items())]
        own = hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()
    return f"sha256:{own}"


def whole_sha256(path: Path) -> str:
    """Return the SHA-256 of a bundle's file, which must hold all of its weights itself; else a `BundleError`."""
    try:
        second = external_data(path) if path.suffix == ".onnx" else ()
        if second:
            raise BundleError(
                f"{path} keeps weights in a second file, {second[0]!r:.80}, which no hash would cover; make it one "
                "file: onnx.save(onnx.load(path), path)"
            )
        return file_sha256(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
