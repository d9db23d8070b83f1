"""Where an audit keeps what it has found so far, so that it can be interrupted anywhere and go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.artifacts.bundle import write_json
from sfumato.errors import AuditError, BundleError
from sfumato.lab.data.cache import root

_IDENTITY = "audit"


def remembered(name: str, of: str, find: Callable[[], Any]) -> Any:
    """What does not depend on the obfuscator: found once on a machine, then read from the user's cache folder.

    Args:
        name: what it is.
        of: everything that it depends on.
        find: gives plain JSON values.
    """
    path = root() / "audit" / f"{name}-{hashlib.sha256(of.encode()).hexdigest()[:32]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = find()
    with contextlib.suppress(BundleError):  # a full disk costs the next audit some minutes, not this one its answer
        write_json(path, found)
    return found


class Notebook:
    """A folder with one JSON file for every finding, and images beside it.

    Args:
        folder: is created.
        identity: of the audit; findings of another one are not mixed in.
        resume: go on with the findings that are there.
        overwrite: throw them away.

    Raises:
        AuditError: there are findings and neither was asked for, or they are another audit's, or the disk refuses.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise AuditError("--resume goes on with an audit, --overwrite starts anew; choose one")
        self.folder = folder
        if overwrite and (folder / f"{_IDENTITY}.json").is_file():  # else it is somebody's folder, not an audit's
            shutil.rmtree(folder, ignore_errors=True)
        try:
            known = json.loads((folder / f"{_IDENTITY}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = None
        except (OSError, ValueError) as error:
            raise AuditError(f"{folder} cannot be read: {error}; --overwrite starts anew") from error
        if known is not None and not resume:
            raise AuditError(
                f"{folder.parent} holds an audit already: --resume goes on with it, --overwrite starts anew"
            )
        if known is not None and known != identity:
            changed = ", ".join(key for key in identity if known.get(key) != identity[key])
            raise AuditError(f"the audit in {folder.parent} is another one ({changed} differ); --overwrite starts anew")
        write_json(folder / f"{_IDENTITY}.json", identity)

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """A finding, in plain JSON values: from its file, or found now and written."""
        path = self.folder / f"{key}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass
        write_json(path, find())
        return json.loads(path.read_text(encoding="utf-8"))

    def known(self, key: str) -> Any:
        """A finding that was written, or None."""
        path = self.folder / f"{key}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def forget_failed(self, key: str) -> None:
        """A trial that failed is tried again when the audit is resumed: the disk may have been full."""
        found = self.known(key)
        if found is not None and found.get("status") == "failed":
            (self.folder / f"{key}.json").unlink()

    def keep(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Writes tensors under a key.

        Raises:
            AuditError: the disk refuses.
        """
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, self.folder / f"{key}.safetensors")
        except (OSError, SafetensorError) as error:
            raise AuditError(f"{self.folder} cannot be written: {error}") from error

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The tensors under a key; none if there are none."""
        path = self.folder / f"{key}.safetensors"
        return load_file(path) if path.is_file() else {}

    def checkpoint(self, key: str) -> Path:
        """A file for an attacker's state while he learns."""
        return self.folder / f"{key}.pt"
