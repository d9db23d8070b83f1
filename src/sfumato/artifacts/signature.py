"""Signatures of bundles: plain Ed25519 over the bytes of `bundle.json`, in `signature.json` beside it.

The manifest has the SHA-256 of every file of the bundle, so that its signature covers them all: `Bundle.load` compares
each with its hash and refuses ONNX files that keep weights in a second file, and `Bundle.file`, through which devices
and servers find what they open, gives no file that the manifest does not list. Not covered are other files in the
folder, such as README.md, which neither opens. Not noticed are an older bundle that the same key has signed, and
changes of files between the check and the moment they are opened.

Signatures and keys are those of OpenSSL (`openssl pkeyutl -verify -rawin`). The library `cryptography` is imported on
use: `pip install 'sfumato[sign]'`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.artifacts.files import read_json, write_json
from sfumato.errors import BundleError, BundleUntrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE = "signature.json"
KeyFiles = Sequence[str | os.PathLike[str]]
_SCHEMA, _ALGORITHM = "sfumato.signature/1", "ed25519"
_KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")
_SIGNATURE_BYTES = 64
_LARGEST_KEY_FILE = 1 << 16


@dataclass(frozen=True)
class Signature:
    """What `signature.json` states; nothing of it is checked.

    Attributes:
        key: the id of the key that signed: `sha256:<hex>` of the public key's DER (SubjectPublicKeyInfo).
        value: 64 bytes.
    """

    key: str
    value: bytes


def check_signature(folder: Path, manifest: bytes, trusted_keys: KeyFiles) -> str:
    """Check that a manifest is signed by one of the trusted keys.

    Args:
        folder: the bundle's.
        manifest: the content of its manifest, which the caller goes on with.
        trusted_keys: files with an Ed25519 public key each, PEM; none accepts no bundle.

    Returns:
        The id of the key that signed.

    Raises:
        BundleUntrusted: there is no signature, it is malformed, or none of the keys made it for this manifest.
        BundleError: a key cannot be used, or `cryptography` is not installed.
    """
    with _cryptography():
        from cryptography.exceptions import InvalidSignature
    keys = {}
    for file in trusted_keys:
        key = _read_public_key(Path(file))
        keys[_id_of(key)] = key
    stated = read_signature(folder)
    if stated is None:
        raise BundleUntrusted(
            f"{folder} is not signed, and only bundles of a trusted key are accepted; get the signed one from "
            "its publisher, or make it: sfumato export --to signed"
        )
    if stated.key not in keys:
        known = ", ".join(short(one) for one in keys) or "none"
        raise BundleUntrusted(
            f"{folder} is signed by key {short(stated.key)}, which is not trusted (trusted: {known}); get the bundle "
            "from its publisher, or trust the publisher's key"
        )
    try:
        keys[stated.key].verify(stated.value, manifest)
    except InvalidSignature:
        raise BundleUntrusted(
            f"{folder} was changed after key {short(stated.key)} signed it, or has the signature of another bundle; "
            "get it from its publisher again"
        ) from None
    return stated.key


def read_signature(folder: Path) -> Signature | None:
    """Return what a bundle's signature states, without checking it; None if there is none.

    Raises:
        BundleUntrusted: it is malformed.
    """
    file = folder / SIGNATURE
    if not file.is_file():
        return None
    raw = read_json(file, BundleUntrusted)
    if not isinstance(raw, dict) or raw.keys() != {"schema", "algorithm", "key", "signature"}:
        raise BundleUntrusted(f"{file} is no signature; get the bundle from its publisher again")
    if (raw["schema"], raw["algorithm"]) != (_SCHEMA, _ALGORITHM):
        raise BundleUntrusted(
            f"{file} has schema {raw['schema']!r:.60} and algorithm {raw['algorithm']!r:.60}; this version of sfumato "
            f"reads {_SCHEMA!r} and {_ALGORITHM!r}"
        )
    try:
        value = base64.b64decode(raw["signature"], validate=True)
    except (TypeError, ValueError):
        value = b""
    if len(value) != _SIGNATURE_BYTES or not (isinstance(raw["key"], str) and _KEY_ID.fullmatch(raw["key"])):
        raise BundleUntrusted(f"{file} is damaged: its key or signature is malformed; get it from its publisher again")
    return Signature(raw["key"], value)


def write_signature(folder: Path, manifest: bytes, private_key: str | os.PathLike[str]) -> Signature:
    """Sign a bundle's manifest and write `signature.json`.

    Args:
        folder: the bundle's.
        manifest: the content of its manifest.
        private_key: a file with an Ed25519 private key without a passphrase, PEM.

    Raises:
        BundleError: the key cannot be used, the disk refuses, or `cryptography` is not installed.
    """
    key = _read_private_key(Path(private_key))
    signature = Signature(_id_of(key.public_key()), key.sign(manifest))
    value = base64.b64encode(signature.value).decode("ascii")
    about = {"schema": _SCHEMA, "algorithm": _ALGORITHM, "key": signature.key, "signature": value}
    write_json(folder / SIGNATURE, about)
    return signature


def remove_signature(folder: Path) -> None:
    """Remove a bundle's signature, if it has one, before its manifest changes.

    Raises:
        BundleError: the disk refuses.
    """
    try:
        (folder / SIGNATURE).unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"cannot remove {folder / SIGNATURE}: {error.strerror or error}") from error


def short(key: str) -> str:
    """Return the start of a key's id, for people."""
    return f"{key[:19]}…"


def _read_public_key(file: Path) -> Ed25519PublicKey:
    with _cryptography():
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _one_key(file)
    if b"PRIVATE KEY" in content:
        raise BundleError(
            f"{file} holds a private key, which only the publisher may have; a public one is expected: "
            f"openssl pkey -in {file} -pubout"
        )
    key = _loaded(file, "public", load_pem_public_key, content)
    if not isinstance(key, Ed25519PublicKey):
        raise _of_another_kind(file, "public")
    return key


def _read_private_key(file: Path) -> Any:
    with _cryptography():
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _one_key(file)
    if b"PUBLIC KEY" in content:
        raise BundleError(f"{file} holds a public key; the publisher's private one signs")
    key = _loaded(file, "private", load_pem_private_key, content, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise _of_another_kind(file, "private")
    return key


def _one_key(file: Path) -> bytes:
    """Return the content of a file with one key, which no message may have in it."""
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise BundleError(f"the key {file} cannot be read: {error.strerror or error}") from None
    found = content.count(b"-----BEGIN ")
    if found != 1:
        raise BundleError(f"{file} has {found} keys in PEM; one is expected in each file")
    return content


def _loaded(file: Path, which: str, load: Any, *content: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(*content)
    except TypeError:  # what the library raises for a passphrase that is not given
        raise BundleError(f"{file} needs a passphrase; give a key without one, such as openssl pkey writes") from None
    except (ValueError, UnsupportedAlgorithm):  # may quote the file
        raise BundleError(f"{file} cannot be read as an Ed25519 {which} key in PEM") from None


def _of_another_kind(file: Path, which: str) -> BundleError:
    return BundleError(
        f"{file} holds a {which} key of another kind than Ed25519; make one: openssl genpkey -algorithm ed25519"
    )


def _id_of(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


@contextmanager
def _cryptography() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise BundleError(
            "signatures need cryptography, which is not installed; run: pip install 'sfumato[sign]'"
        ) from None
