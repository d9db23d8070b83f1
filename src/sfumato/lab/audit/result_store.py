"""Stores what an audit has found so far, so that it can be interrupted anywhere and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.artifacts.files import whole_file, write_json
from sfumato.errors import AuditError, BundleError
from sfumato.lab.data.cache import root
from sfumato.lab.evaluation.results import read_object

T = TypeVar("T")


def code_sha256(*files: Path | str | None) -> str:
    """Return the SHA-256 of source files, in hex: a finding of theirs is made anew when they change."""
    return hashlib.sha256(b"".join(Path(str(file)).read_bytes() for file in files)).hexdigest()


def cached(name: str, of: object, kind: Any, find: Callable[[], T]) -> T:
    """Return what does not depend on the obfuscator, from the user's cache folder if it was found before.

    Args:
        name: of the finding.
        of: everything that it depends on.
        kind: its type, as pydantic takes it.
        find: is called if the cache has nothing.
    """
    path = root() / "audit" / f"{name}-{hashlib.sha256(str(of).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return cast("T", _read(path, kind))
    found = find()
    with contextlib.suppress(BundleError):  # a full disk costs the next audit some minutes, not this one its result
        _write(path, kind, found)
    return found


def stored_images(folder: Path, key: str) -> Tensor | None:
    """Return what a trial's attacker reconstructed, (K, 3, H, W) uint8; None if that was not kept.

    `folder` is `work` in the audit's; with "-all" after a trial's key these are all test images of the best one.
    """
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AuditError(f"{path} cannot be read: {error}; --overwrite restarts the audit") from error
    return tensors.get("reconstructed", tensors.get("restored"))  # the latter in audits of earlier versions


def stored_identity(folder: Path, *, resume: bool, overwrite: bool) -> Mapping[str, object] | None:
    """Return the identity of the audit whose findings a folder has; None if it has none, or they are to be removed.

    Raises:
        AuditError: as `ResultStore`, except that the identity is not compared.
    """
    if resume and overwrite:
        raise AuditError("--resume continues an audit, --overwrite restarts it; choose one")
    known = None if overwrite else read_object(folder / "audit.json", AuditError)
    if known is not None and not resume:
        raise AuditError(f"{folder.parent} holds an audit already: --resume continues it, --overwrite restarts it")
    return known


class ResultStore:
    """A folder with one JSON file for each finding, and images.

    Args:
        folder: is created.
        identity: of the audit; findings of another audit, or by another version of the schema, are not mixed in.
        resume: use the findings that are there.
        overwrite: remove them.

    Raises:
        AuditError: there are findings and neither was asked for, or they are another audit's, or they are damaged.
        BundleError: the disk refuses.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], *, resume: bool, overwrite: bool) -> None:
        known = stored_identity(folder, resume=resume, overwrite=overwrite)
        self.folder, about = folder, folder / "audit.json"
        if overwrite and about.is_file():  # else it is somebody's folder, not an audit's
            shutil.rmtree(folder, ignore_errors=True)
        if known is not None and known != identity:
            changed = ", ".join(key for key in identity if known.get(key) != identity[key])
            raise AuditError(
                f"the audit in {folder.parent} is another one (it differs in: {changed}); --overwrite restarts it"
            )
        write_json(about, identity)

    def once(self, key: str, kind: Any, find: Callable[[], T]) -> T:
        """Return a finding of type `kind`, as pydantic takes it: from the file of its key, or found and written."""
        path = self.folder / f"{key}.json"
        with contextlib.suppress(OSError, ValueError):
            return cast("T", _read(path, kind))
        _write(path, kind, find())
        return cast("T", _read(path, kind))

    def known(self, key: str, kind: Any) -> Any:
        """Return a finding that was written, of type `kind`, or None."""
        path = self.folder / f"{key}.json"
        try:
            return _read(path, kind) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise AuditError(f"{path} is damaged: {error}; remove it, and --resume finds it again") from error

    def forget(self, key: str) -> None:
        """Remove a finding."""
        (self.folder / f"{key}.json").unlink(missing_ok=True)

    def keep(self, key: str, reconstructed: Tensor) -> None:
        """Keep images (K, 3, H, W) uint8 for `stored_images`.

        Raises:
            AuditError: the disk refuses.
        """
        try:
            with whole_file(self.folder / f"{key}.safetensors") as partial:
                save_file({"reconstructed": reconstructed.contiguous()}, partial)
        except (OSError, SafetensorError) as error:
            raise AuditError(f"{self.folder} cannot be written: {error}") from error

    def checkpoint(self, key: str) -> Path:
        """The file for an attacker's state while it learns."""
        return self.folder / f"{key}.pt"


def _read(path: Path, kind: Any) -> Any:
    return TypeAdapter(kind).validate_json(path.read_bytes())


def _write(path: Path, kind: Any, value: object) -> None:
    write_json(path, TypeAdapter(kind).dump_python(value, mode="json"))
