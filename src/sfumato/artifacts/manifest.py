"""`bundle.json`: where it lies, on the hub too, and that this version of sfumato reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sfumato.artifacts.files import parse_json, read_json_bytes
from sfumato.artifacts.hub import HubPlace, fetch
from sfumato.artifacts.signature import SIGNATURE
from sfumato.artifacts.versions import upgraded
from sfumato.errors import BundleError

SCHEMA = "sfumato.bundle/2"
MANIFEST = "bundle.json"
_READABLE = (SCHEMA, "sfumato.bundle/1")
_FETCHED = re.compile(r"[\w-][\w.-]*\.(onnx|safetensors)")


def local_folder(place: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle's place, the one way to find a bundle; one on the hub is fetched.

    Args:
        place: a folder, or `hf://owner/name` or `hf://owner/name@revision` on the Hugging Face hub. Of the latter only
            the manifest, its signature and the files that it lists are fetched, if all of them are ONNX or safetensors.

    Raises:
        BundleError: a manifest that cannot be read or lists anything else, or as `sfumato.artifacts.hub.fetch`.

    Warns:
        RevisionMoved: the revision is no commit, and names another one than before.
    """
    found = HubPlace.parse(place)
    return Path(place) if found is None else fetch(found, MANIFEST, _files_to_fetch, SIGNATURE)


def _files_to_fetch(folder: Path) -> list[str]:
    files = parse_manifest(folder, read_manifest(folder)).get("files")
    names = list(files) if isinstance(files, dict) else []
    for name in names:
        if not _FETCHED.fullmatch(name):
            raise BundleError(
                f"{folder / MANIFEST} lists {name!r:.80}; only ONNX and safetensors files are fetched from the hub, "
                "because others may run code"
            )
    return names


def read_manifest(folder: Path) -> bytes:
    """Return the bytes of a bundle's manifest, which are what is signed.

    Raises:
        BundleError: no such folder, no manifest, or it cannot be read.
    """
    manifest = folder / MANIFEST
    if not os.path.isdir(folder):  # noqa: PTH112 (a Path's own raises where a name is too long)
        raise BundleError(f"no bundle at {folder}: a folder with a {MANIFEST} is expected")
    if not manifest.is_file():
        inner = folder / "bundle"  # a training's folder has its bundle there
        hint = (
            f"{inner} is one" if (inner / MANIFEST).is_file() else "`sfumato import` makes one of your own classifier"
        )
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST} ({hint})")
    return read_json_bytes(manifest)


def parse_manifest(folder: Path, content: bytes) -> dict[str, object]:
    """Return what a bundle's manifest says, in the names of this version.

    Raises:
        BundleError: it is one that this version cannot read.
    """
    manifest = folder / MANIFEST
    raw = upgraded(parse_json(content, manifest))
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema not in _READABLE:
        update = "; a newer one reads it: pip install --upgrade sfumato" if _is_newer(schema) else ""
        raise BundleError(f"{manifest} has schema {schema!r:.60}; this version of sfumato reads {SCHEMA!r}{update}")
    return {"recipe": {}, "figures": {}, "provenance": {}, **raw}


def _is_newer(schema: object) -> bool:
    name, _, version = str(schema).partition("/")
    ours, _, current = SCHEMA.partition("/")
    return name == ours and re.fullmatch("[0-9]{1,9}", version) is not None and int(version) > int(current)
