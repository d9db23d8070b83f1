"""Files on the Hugging Face hub, fetched into and found in the cache of `huggingface_hub`, and pushed.

That library is imported on use. Its settings hold: `HF_HOME` (cache), `HF_HUB_OFFLINE`, `HF_ENDPOINT`, and the token of
`hf auth login` or `HF_TOKEN`, which is neither read nor written here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sfumato.artifacts.signature import SIGNATURE
from sfumato.errors import BundleError

_PLACE = re.compile(r"hf:[/\\]{1,2}(?P<repository>[^/\\@]+[/\\][^/\\@]+)(@(?P<revision>.+))?")  # a Path drops a slash
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPLACED = (".onnx", ".safetensors", ".pt2", SIGNATURE)


class RevisionMoved(UserWarning):
    """A branch or tag names another commit than when it was fetched before."""


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, `hf://owner/name`, or a revision of it, `hf://owner/name@revision`.

    Attributes:
        repository: owner/name.
        revision: a branch, a tag or a commit (40 hexadecimal digits); None for the branch `main`.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, place: str | os.PathLike[str]) -> HubPlace | None:
        """Return the place that a text names; None if it names none on the hub.

        Raises:
            BundleError: it starts with `hf:/` and goes on with something else.
        """
        text = os.fspath(place)
        if not text.startswith(("hf:/", "hf:\\")):
            return None
        found = _PLACE.fullmatch(text)
        if found is None:
            raise BundleError(
                f"{text!r:.100} names no repository on the hub; expected hf://owner/name or hf://owner/name@revision"
            )
        return cls(found["repository"].replace("\\", "/"), found["revision"])


def fetch(place: HubPlace, first: str, listed: Callable[[Path], Iterable[str]], optional: str) -> Path:
    """Fetch a file and those that it lists, all of one commit, and nothing else.

    What the cache has of that commit is not fetched again; without a connection, the cache alone is used.

    Args:
        place: where they are.
        first: the name of the file.
        listed: returns the names of the others, given the folder that has the first.
        optional: the name of one more file, which may be missing.

    Returns:
        The folder in the cache. Others use it too: it is for reading.

    Raises:
        BundleError: `huggingface_hub` is not installed, there is no such repository, revision or file, access is
            refused, or the hub cannot be reached and the cache does not have it; or as `listed`.

    Warns:
        RevisionMoved: the revision is no commit, and names another one than before.
    """
    with _our_errors(place, first):
        import huggingface_hub as hub

        known = hub.try_to_load_from_cache(place.repository, first, revision=place.revision)
        file = Path(_download(place.repository, first, place.revision))
    folder, commit = file.parent, file.parent.name
    if isinstance(known, str) and Path(known).parent.name != commit:
        warnings.warn(
            f"{place} has moved from {Path(known).parent.name[:12]} to {commit[:12]} since it was fetched before; "
            f"to stay at one, name it: hf://{place.repository}@{commit}",
            RevisionMoved,
            stacklevel=2,
        )
    for name in listed(folder):
        with _our_errors(HubPlace(place.repository, commit), name):
            _download(place.repository, name, commit)
    _download_optional(HubPlace(place.repository, commit), optional)
    return folder


def _download_optional(place: HubPlace, name: str) -> None:
    """Fetch a file if the hub can be reached and has it; that it has none is asked once for each commit."""
    with _our_errors(place, name):
        from huggingface_hub import errors, try_to_load_from_cache

        if try_to_load_from_cache(place.repository, name, revision=place.revision) is None:
            with suppress(errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
                _download(place.repository, name, place.revision)


def _download(repository: str, name: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repository, name, revision=revision, library_name="sfumato")


def in_cache(folder: Path) -> bool:
    """Whether a folder is one that `fetch` returned, by the names in its path."""
    return bool(_COMMIT.fullmatch(folder.name)) and folder.parent.name == "snapshots"


def push(folder: Path, place: HubPlace, *, first: str, private: bool, message: str) -> str:
    """Push a folder's files as one commit; deletes models and a signature that are there and not among them.

    Args:
        folder: the files.
        place: where to; the repository and the branch are made if they are missing.
        first: the file without which a repository that holds something holds something else.
        private: of a repository that is made: whether only its owner sees it.
        message: of the commit.

    Returns:
        The commit.

    Raises:
        BundleError: `huggingface_hub` is not installed, the repository holds something else, access is refused, or the
            hub cannot be reached.
    """
    with _our_errors(place):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(library_name="sfumato")
        api.create_repo(place.repository, private=private, exist_ok=True)
        if place.revision is not None:
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
        held = set(api.list_repo_files(place.repository, revision=place.revision)) - {".gitattributes"}
        if held and first not in held:
            raise BundleError(
                f"{place} holds something else ({', '.join(sorted(held)[:3])}) and no {first}; push to a repository of "
                "its own"
            )
        files = sorted(folder.iterdir())
        stale = {name for name in held if name.endswith(_REPLACED)} - {file.name for file in files}
        done = api.create_commit(
            place.repository,
            [
                *(CommitOperationAdd(file.name, file) for file in files),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            revision=place.revision,
            commit_message=message,
        )
    return str(done.oid)


@contextmanager
def _our_errors(place: HubPlace, name: str = "a file") -> Iterator[None]:
    """Turn the hub's errors into a `BundleError` that says what to do; none of them has a token in it."""
    try:
        yield
    except BundleError:
        raise
    except ModuleNotFoundError as error:
        raise BundleError(
            f"{place} needs {error.name}, which is not installed; run: pip install huggingface_hub"
        ) from None
    except Exception as error:  # its transport has its own error tree, which changes between releases
        raise BundleError(f"{place}: {_reason(place, name, error)}") from None


def _reason(place: HubPlace, name: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    responses = (getattr(one, "response", None) for one in (error, error.__cause__))
    status = next((int(one.status_code) for one in responses if one is not None), None)
    failed = "the hub cannot be reached" if status is None else f"the hub failed (HTTP {status})"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner asks for consent; give it on the repository's page, and {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private: check the name; for a private one, {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {place.revision!r:.60}; it may have been deleted: name one that it has"
    if status in (401, 403):
        return f"the hub refuses access (HTTP {status}): {log_in}, with a token that may do this"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        failed = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else failed
        return f"{failed}, and the cache does not have {name}; fetch it once with a connection"
    if isinstance(error, errors.EntryNotFoundError):
        return f"it holds no whole bundle: {name} is missing"
    if isinstance(error, errors.HFValidationError):
        return "that is no name of a repository; expected owner/name"
    if status is not None:
        return f"{failed}; try again later"
    told = re.sub(r"\?\S*", "", str(error).strip().split("\n")[0])  # a signed address has its key after the `?`
    return f"{type(error).__name__}: {told:.200}"
