"""Signed bundles: what is signed, and that nothing else is accepted once a key is trusted."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from sfumato.artifacts import bundle as bundles
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import file_sha256, write_json
from sfumato.artifacts.signature import SIGNATURE, read_signature
from sfumato.errors import BundleError, BundleUntrusted
from signing import Keys, save_keys

pytest.importorskip("cryptography")
OPENSSL = shutil.which("openssl")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return save_keys(tmp_path, "publisher")


@pytest.fixture
def folder(tmp_path: Path, obfuscator_bundle: Bundle, keys: Keys) -> Path:
    """A signed copy that may be damaged."""
    copy = Path(shutil.copytree(obfuscator_bundle.path, tmp_path / "bundle"))
    Bundle.load(copy).sign(keys.private)
    return copy


def edit(file: Path, **changes: Any) -> None:
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **changes})


def stated(folder: Path) -> str:
    return str(json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))["signature"])


def flipped(folder: Path) -> str:
    value = bytearray(base64.b64decode(stated(folder)))
    value[5] ^= 1
    return base64.b64encode(value).decode()


def signed_by_another(folder: Path) -> None:
    """Sign it with another key, and claim the trusted one."""
    trusted = read_signature(folder)
    Bundle.load(folder).sign(save_keys(folder.parent, "another").private)
    assert trusted is not None
    edit(folder / SIGNATURE, key=trusted.key)


def test_a_signed_bundle_is_what_it_was_and_says_who_signed_it(folder, keys, obfuscator_bundle):
    assert (folder / MANIFEST).read_bytes() == (obfuscator_bundle.path / MANIFEST).read_bytes()
    found = Bundle.load(folder, kind="obfuscator", trusted_keys=[keys.public])
    assert found.signed_by is not None and found.to_json() == obfuscator_bundle.to_json()
    assert Bundle.load(folder).signed_by is None, "nothing was checked"
    other = save_keys(folder.parent, "other")
    assert Bundle.load(folder, trusted_keys=[other.public, keys.public]).signed_by == found.signed_by


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
def test_openssl_makes_the_keys_and_agrees(tmp_path, obfuscator_bundle):
    def openssl(*words: object) -> bytes:
        return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True).stdout

    private, public, copy = tmp_path / "private.pem", tmp_path / "public.pem", tmp_path / "copy"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    shutil.copytree(obfuscator_bundle.path, copy)
    Bundle.load(copy).sign(private)
    found = Bundle.load(copy, trusted_keys=[public])
    (tmp_path / "signature").write_bytes(base64.b64decode(stated(copy)))
    how = ("-pubin", "-inkey", public, "-rawin", "-in", copy / MANIFEST, "-sigfile", tmp_path / "signature")
    assert b"Successfully" in openssl("pkeyutl", "-verify", *how)
    openssl("pkey", "-pubin", "-in", public, "-outform", "DER", "-out", tmp_path / "der")
    assert openssl("dgst", "-sha256", "-r", tmp_path / "der").split()[0].decode() == str(found.signed_by)[7:]


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unsigned": (lambda at: (at / SIGNATURE).unlink(), "is not signed"),
    "a folder instead": (lambda at: ((at / SIGNATURE).unlink(), (at / SIGNATURE).mkdir()), "is not signed"),
    "another key": (lambda at: Bundle.load(at).sign(save_keys(at.parent, "x").private), "which is not trusted"),
    "another key in its name": (signed_by_another, "was changed after key"),
    "a flipped bit": (lambda at: edit(at / SIGNATURE, signature=flipped(at)), "was changed after key"),
    "another label": (lambda at: edit(at / MANIFEST, labels=["x"] * len(tiny.LABELS)), "was changed after key"),
    "a space": (lambda at: (at / MANIFEST).write_bytes((at / MANIFEST).read_bytes() + b" "), "was changed after key"),
    "no manifest that can be read": (lambda at: (at / MANIFEST).write_bytes(b"{"), "was changed after key"),
    "half": (lambda at: edit(at / SIGNATURE, signature=stated(at)[:44]), "is damaged"),
    "none": (lambda at: edit(at / SIGNATURE, signature=""), "is damaged"),
    "a longer one": (lambda at: edit(at / SIGNATURE, signature=base64.b64encode(b"x" * 65).decode()), "is damaged"),
    "no base64": (lambda at: edit(at / SIGNATURE, signature="*" + stated(at)), "is damaged"),
    "no Latin": (lambda at: edit(at / SIGNATURE, signature="ä" * 88), "is damaged"),
    "a number": (lambda at: edit(at / SIGNATURE, signature=7), "is damaged"),
    "no key": (lambda at: edit(at / SIGNATURE, key=None), "is damaged"),
    "a short key": (lambda at: edit(at / SIGNATURE, key="sha256:00"), "is damaged"),
    "another algorithm": (lambda at: edit(at / SIGNATURE, algorithm="none"), "algorithm 'none'"),
    "a newer one": (lambda at: edit(at / SIGNATURE, schema="sfumato.signature/2"), "reads 'sfumato.signature/1'"),
    "a list": (lambda at: (at / SIGNATURE).write_text("[]"), "is no signature"),
    "no JSON": (lambda at: (at / SIGNATURE).write_bytes(b"\xff"), "cannot be read as JSON"),
    "cut off": (lambda at: (at / SIGNATURE).write_bytes((at / SIGNATURE).read_bytes()[:90]), "cannot be read as JSON"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused_before_a_file_is_opened(folder, keys, what, monkeypatch):
    tamper, says = TAMPERED[what]
    tamper(folder)
    monkeypatch.setattr(bundles, "whole_sha256", lambda path: pytest.fail(f"{path} was opened"))
    monkeypatch.setattr(bundles, "parse_manifest", lambda *given: pytest.fail("the manifest was used"))
    with pytest.raises(BundleUntrusted, match=says):
        Bundle.load(folder, trusted_keys=[keys.public])


def test_without_trusted_keys_a_signature_changes_nothing(folder):
    for text in ("", "[]"):
        (folder / SIGNATURE).write_text(text)
        assert Bundle.load(folder).signed_by is None


def test_a_changed_file_is_refused_with_its_old_hash_and_with_a_new_one(folder, keys):
    with (folder / OBFUSCATOR_ONNX).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="the file was changed or damaged"):
        Bundle.load(folder, trusted_keys=[keys.public])
    edit(folder / MANIFEST, files={OBFUSCATOR_ONNX: file_sha256(folder / OBFUSCATOR_ONNX)})
    Bundle.load(folder)
    with pytest.raises(BundleUntrusted, match="was changed after"):
        Bundle.load(folder, trusted_keys=[keys.public])


def test_the_signature_of_one_bundle_is_none_of_another(folder, keys, tmp_path, classifier_bundle):
    other = Path(shutil.copytree(classifier_bundle.path, tmp_path / "other"))
    shutil.copyfile(folder / SIGNATURE, other / SIGNATURE)
    with pytest.raises(BundleUntrusted, match="the signature of another bundle"):
        Bundle.load(other, trusted_keys=[keys.public])


def test_no_trusted_keys_is_not_the_same_as_none_asked_for(folder):
    with pytest.raises(BundleUntrusted, match=r"not trusted \(trusted: none\)"):
        Bundle.load(folder, trusted_keys=[])


def test_whoever_changes_a_signed_bundle_drops_its_signature(folder, keys):
    signed = Bundle.load(folder, trusted_keys=[keys.public])
    saved = replace(signed, figures=signed.figures.updated(accuracy_plain=0.5)).save()
    assert saved.signed_by is None and read_signature(folder) is None
    with pytest.raises(BundleUntrusted, match="is not signed"):
        Bundle.load(folder, trusted_keys=[keys.public])


def test_copies_without_the_labs_files_are_signed_anew_or_not_at_all(folder, keys, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = Bundle.load(folder)
    source.write_public(tmp_path / "a")
    source.write_public(tmp_path / "b", key=keys.private)
    assert read_signature(tmp_path / "a") is None
    assert Bundle.load(tmp_path / "b", trusted_keys=[keys.public]).files == source.files


def test_what_has_changed_since_it_was_read_is_not_signed(folder, keys):
    source = Bundle.load(folder)
    edit(folder / MANIFEST, files={**source.files, CLASSIFIER_ONNX: "0" * 64})
    with pytest.raises(BundleError, match="was changed since it was read"):
        source.sign(keys.private)
    edit(folder / MANIFEST, files=dict(source.files))
    (folder / OBFUSCATOR_ONNX).write_bytes(b"x")
    with pytest.raises(BundleError, match="the file was changed or damaged"):
        source.sign(keys.private)


def bad_key(at: Path, which: str) -> tuple[Path, str]:
    """Return a file that is no Ed25519 public key, and what is said of it."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    file, good = at / "key.pem", save_keys(at, "good")
    match which:
        case "private":
            return good.private, "holds a private key, which only the publisher may have"
        case "rsa":
            return save_keys(at, "r", rsa.generate_private_key(65537, 1024)).public, "of another kind than Ed25519"
        case "elliptic curve":
            return save_keys(at, "e", ec.generate_private_key(ec.SECP256R1())).public, "of another kind than Ed25519"
        case "both":
            file.write_bytes(good.public.read_bytes() + good.private.read_bytes())
            return file, "has 2 keys in PEM"
        case "cut off":
            file.write_bytes(good.public.read_bytes()[:60])
            return file, "cannot be read as an Ed25519 public key"
        case "empty":
            file.write_bytes(b"")
            return file, "has 0 keys in PEM"
    return file, "cannot be read: No such file"


@pytest.mark.parametrize("which", ["private", "rsa", "elliptic curve", "both", "cut off", "empty", "missing"])
def test_a_trusted_key_that_is_none_is_refused_and_not_shown(folder, keys, tmp_path, which):
    (tmp_path / "bad").mkdir()
    file, says = bad_key(tmp_path / "bad", which)
    with pytest.raises(BundleError, match=says) as refused:
        Bundle.load(folder, trusted_keys=[keys.public, file])
    content = file.read_text().splitlines()[1:-1] if file.exists() else []
    assert not any(line in str(refused.value) for line in content if line)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("which", ["public", "rsa", "passphrase"])
def test_a_key_that_cannot_sign_is_refused_and_leaves_no_signature(folder, keys, tmp_path, which):
    from cryptography.hazmat.primitives.asymmetric import rsa

    file, says = {
        "public": lambda: (keys.public, "holds a public key"),
        "rsa": lambda: (save_keys(tmp_path, "r", rsa.generate_private_key(65537, 1024)).private, "of another kind"),
        "passphrase": lambda: (save_keys(tmp_path, "p", password=b"secret").private, "needs a passphrase"),
    }[which]()
    (folder / SIGNATURE).unlink()
    with pytest.raises(BundleError, match=says):
        Bundle.load(folder).sign(file)
    assert not (folder / SIGNATURE).exists()


def test_without_the_library_nothing_is_accepted_and_the_extra_is_named(folder, keys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BundleError, match=r"pip install 'sfumato\[sign\]'"):
        Bundle.load(folder, trusted_keys=[keys.public])
    with pytest.raises(BundleError, match=r"pip install 'sfumato\[sign\]'"):
        Bundle.load(folder).sign(keys.private)
    assert Bundle.load(folder).files, "none is needed to read it"
