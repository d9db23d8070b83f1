"""Signed bundles on the command line, at the server and on the hub: `export --to signed` and `--trusted-key`."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import tiny
from commands import sfumato
from hub_fake import TOKEN, Repository, as_the_hub
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DEOBFUSCATOR_ONNX, MANIFEST, Bundle
from sfumato.artifacts.signature import SIGNATURE
from sfumato.cloud import ServedModel, catalogue_of, running
from sfumato.errors import BundleUntrusted
from signing import Keys, save_keys

pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return save_keys(tmp_path, "publisher")


@pytest.fixture
def other(tmp_path: Path) -> Keys:
    return save_keys(tmp_path, "other")


def signed(bundle: Bundle, folder: Path, keys: Keys) -> Path:
    copy = Path(shutil.copytree(bundle.path, folder, dirs_exist_ok=True))
    Bundle.load(copy).sign(keys.private)
    return copy


@pytest.fixture
def mine(obfuscator_bundle: Bundle, tmp_path: Path, keys: Keys) -> Path:
    return signed(obfuscator_bundle, tmp_path / "mine", keys)


@pytest.fixture
def net(classifier_bundle: Bundle, tmp_path: Path, keys: Keys) -> Path:
    return signed(classifier_bundle, tmp_path / "net", keys)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(tiny.image()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_export_signs_what_a_device_needs(obfuscator_bundle, tmp_path, keys):
    source, out = Path(shutil.copytree(obfuscator_bundle.path, tmp_path / "source")), tmp_path / "out"
    (source / DEOBFUSCATOR_ONNX).write_bytes(b"x")
    Bundle.load(source).save()
    words = ("export", source, "--to", "signed", "-o", out)
    assert "--to signed needs --key" in sfumato(*words, code=1).stderr
    shown = json.loads(sfumato(*words, "--key", keys.private, "--json").stdout)
    found = Bundle.load(out, trusted_keys=[keys.public])
    assert shown == {"bundle": str(out), "signed_by": found.signed_by, "files": sorted(found.files),
                     "left_out": [DEOBFUSCATOR_ONNX]}  # fmt: skip
    assert sorted(file.name for file in out.iterdir()) == sorted([MANIFEST, SIGNATURE, *found.files])
    assert "--overwrite" in sfumato(*words, "--key", keys.private, code=1).stderr
    assert f"signed by key {found.signed_by}" in sfumato(*words, "--key", keys.private, "--overwrite").stdout
    assert "only with --to signed" in sfumato("export", source, "-o", tmp_path / "x", "--key", "k", code=1).stderr


def test_a_device_and_a_server_that_trust_a_key_work_together(mine, net, keys, photo):
    with running([ServedModel(net, trusted_keys=[keys.public])]) as url:
        words = ("classify", photo, "--server", url, "--bundle", mine, "--json", "--trusted-key", keys.public)
        assert json.loads(sfumato(*words).stdout)["predictions"][0]["label"] in tiny.LABELS
        found = json.loads(sfumato("doctor", mine, "--server", url, "--json", "--trusted-key", keys.public).stdout)
    (signature,) = (one for one in found["findings"] if one["check"] == "signature")
    assert signature["verdict"] == "good" and "which is trusted" in signature["said"]


@pytest.mark.parametrize("command", ["classify", "doctor", "serve", "studio"])
def test_every_command_refuses_what_the_key_has_not_signed(
    command, mine, net, other, photo, obfuscator_bundle, classifier_bundle, no_network
):
    for one, of in ((mine, net), (obfuscator_bundle.path, classifier_bundle.path)):
        words = {
            "classify": ("classify", photo, "--server", "http://127.0.0.1:1", "--bundle", one),
            "doctor": ("doctor", one, "--server", "http://127.0.0.1:1"),
            "serve": ("serve", of, "--port", 0),
            "studio": ("studio", "-o", one, "--classifier", of, "--port", 0),
        }[command]
        said = sfumato(*words, "--trusted-key", other.public, code=1).stderr
        assert ("is not signed" if one != mine else "which is not trusted") in said and said.count("\n") == 1
        where = {f"SFUMATO_{command}_TRUSTED_KEY".upper(): str(other.public)}
        assert sfumato(*words, code=1, **where).stderr == said


def test_what_ships_with_sfumato_is_not_signed_and_so_refused(keys, photo, no_network):
    words = ("classify", photo, "--server", "http://127.0.0.1:1", "--trusted-key", keys.public)
    assert "is not signed" in sfumato(*words, code=1).stderr
    assert "is not signed" in sfumato("studio", "--port", 0, "--trusted-key", keys.public, code=1).stderr


def test_a_setting_without_a_key_is_an_error(tmp_path, net):
    file = tmp_path / "sfumato.toml"
    file.write_text("[serve]\ntrusted_key = []\n")
    assert "names no key" in sfumato("serve", net, "--config", file, code=1).stderr
    assert "names no key" in sfumato("serve", net, code=1, SFUMATO_SERVE_TRUSTED_KEY="").stderr


def test_without_a_key_doctor_says_what_the_signature_states(classifier_bundle, net):
    def said(folder: Path, code: int = 0) -> dict[str, str]:
        found = json.loads(sfumato("doctor", folder, "--json", code=code).stdout)["findings"]
        return next(one for one in found if one["check"] == "signature")

    assert said(net)["verdict"] == "note" and "was not checked" in said(net)["said"]
    assert said(classifier_bundle.path)["verdict"] == "good" and "unsigned" in said(classifier_bundle.path)["said"]
    (net / SIGNATURE).write_text("{}")
    assert said(net, code=1)["verdict"] == "bad"


def test_an_onnx_file_alone_has_no_signature(net, tmp_path, keys):
    (tmp_path / "models" / "net" / "1").mkdir(parents=True)
    shutil.copyfile(net / CLASSIFIER_ONNX, tmp_path / "models" / "net" / "1" / "model.onnx")
    for given in (([net / CLASSIFIER_ONNX],), ([net], tmp_path / "models")):
        with pytest.raises(BundleUntrusted, match="no key has signed it"):
            catalogue_of(*given, trusted_keys=[keys.public])


def test_a_decoder_has_to_be_signed_too(tmp_path, keys):
    obfuscator, classifier = tiny.save_split_bundles(tmp_path / "split")
    net = signed(classifier, tmp_path / "net", keys)
    with pytest.raises(BundleUntrusted, match="is not signed"):
        ServedModel(net, decoder=obfuscator.path, trusted_keys=[keys.public])
    assert ServedModel(net, decoder=signed(obfuscator, tmp_path / "mine", keys), trusted_keys=[keys.public])


def test_reloading_checks_again(net, classifier_bundle, keys, other, caplog):
    opening = partial(catalogue_of, [net], trusted_keys=[keys.public])
    assert pickle.loads(pickle.dumps(opening)).keywords == opening.keywords, "replicas open their own"
    found = opening()
    (first,) = found

    def reloaded() -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            asyncio.run(found.reload())
        return caplog.text

    signed(classifier_bundle, net, other)
    assert "which is not trusted" in reloaded() and list(found) == [first]
    (net / SIGNATURE).unlink()
    assert "is not signed" in reloaded() and list(found) == [first]
    signed(classifier_bundle, net, keys)
    assert "reloaded: serving" in reloaded() and list(found) != [first]
    (second,) = found
    shutil.copyfile(other.public, keys.public)
    assert "which is not trusted" in reloaded() and list(found) == [second], "another key is trusted now"


def test_a_signature_goes_to_the_hub_and_never_stays_behind(mine, keys, tmp_path, monkeypatch):
    with as_the_hub(tmp_path / "cache"):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        own = Bundle.load(mine)
        for key in (keys.private, None):
            place = {"revision": own.push_to_hub("someone/mine", card="# mine", key=key), "trusted_keys": [keys.public]}
            if key is not None:
                assert Bundle.from_pretrained("someone/mine", **place).signed_by
        with pytest.raises(BundleUntrusted, match="is not signed"):
            Bundle.from_pretrained("someone/mine", **place)


def test_a_signature_comes_from_the_hub(mine, obfuscator_bundle, keys, tmp_path):
    with as_the_hub(tmp_path / "cache") as hub:
        hub.repositories["someone/mine"] = Repository()
        hub.repositories["someone/mine"].commit_folder(mine)
        assert Bundle.from_pretrained("someone/mine", trusted_keys=[keys.public]).signed_by
        assert SIGNATURE in hub.fetched()
        hub.repositories["someone/plain"] = Repository()
        hub.repositories["someone/plain"].commit_folder(obfuscator_bundle.path)
        asked = []
        for _ in range(2):
            with pytest.raises(BundleUntrusted, match="is not signed"):
                Bundle.from_pretrained("someone/plain", trusted_keys=[keys.public])
            asked.append([path for _, path in hub.requests if path.endswith(SIGNATURE) and "/plain/" in path])
        assert len(asked[0]) == len(asked[1]) == 1, "that there is none is asked once"
        hub.fails = 503
        assert Bundle.from_pretrained("someone/mine", trusted_keys=[keys.public]).signed_by
        assert Bundle.from_pretrained("someone/plain").signed_by is None
