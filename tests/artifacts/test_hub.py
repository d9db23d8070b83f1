"""Bundles on the hub: found, fetched and pushed, against a stand-in of its HTTP interface."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from hub_fake import TOKEN, Hub, Repository, as_the_hub, serving
from sfumato.artifacts.bundle import DEOBFUSCATOR_ONNX, MANIFEST, OBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.hub import HubPlace, RevisionMoved, in_cache
from sfumato.artifacts.manifest import local_folder
from sfumato.artifacts.records import Provenance, RecipeRecord
from sfumato.device import Obfuscator
from sfumato.errors import BundleError

REPOSITORY = "someone/mine"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with as_the_hub(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def published(hub: Hub, obfuscator_bundle: Bundle) -> Repository:
    """The tiny obfuscator's bundle, with a README and a pickle that the manifest does not list."""
    hub.repositories[REPOSITORY] = Repository()
    hub.repositories[REPOSITORY].commit_folder(obfuscator_bundle.path, README__md=b"# it", weights__bin=b"\x80\x04.")
    return hub.repositories[REPOSITORY]


def manifest(bundle: Bundle, **changed: object) -> bytes:
    return json.dumps({**json.loads((bundle.path / MANIFEST).read_text()), **changed}).encode()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://someone/mine", HubPlace("someone/mine")),
        ("hf://someone/mine@v1", HubPlace("someone/mine", "v1")),
        ("hf://someone/mine@refs/pr/3", HubPlace("someone/mine", "refs/pr/3")),
        (Path("hf://someone/mine"), HubPlace("someone/mine")),
        ("someone/mine", None),
        ("hf", None),
        ("", None),
    ],
)
def test_a_place_is_read(text, place):
    assert HubPlace.parse(text) == place
    assert place is None or HubPlace.parse(str(place)) == place


@pytest.mark.parametrize("text", ["hf://", "hf://mine", "hf:///mine", "hf://a/b/c", "hf://a/b@", "hf:/"])
def test_what_names_no_repository_is_refused(text):
    with pytest.raises(BundleError, match="expected hf://owner/name"):
        Bundle.load(text)


def test_a_bundle_is_fetched_and_is_the_same(hub, published, obfuscator_bundle):
    found = Bundle.from_pretrained(REPOSITORY, kind="obfuscator")
    assert found.to_json() == obfuscator_bundle.to_json()
    image = tiny.image()
    theirs, ours = (Obfuscator(one).obfuscate(image).tensor for one in (f"hf://{REPOSITORY}", obfuscator_bundle))
    np.testing.assert_array_equal(theirs, ours)


def test_only_what_the_manifest_lists_is_fetched_and_only_once(hub, published):
    folder = Bundle.from_pretrained(REPOSITORY).path
    assert sorted(hub.fetched()) == [MANIFEST, OBFUSCATOR_ONNX]
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST, OBFUSCATOR_ONNX]
    Bundle.from_pretrained(REPOSITORY)
    assert len(hub.fetched()) == 2


def test_a_folder_is_not_asked_for(hub, obfuscator_bundle):
    assert local_folder(obfuscator_bundle.path) == obfuscator_bundle.path
    Bundle.load(obfuscator_bundle.path)
    assert hub.requests == []


def test_the_cache_serves_without_a_connection(hub, published, monkeypatch):
    first = Bundle.from_pretrained(REPOSITORY)
    hub.fails = 503
    assert Bundle.from_pretrained(REPOSITORY).path == first.path
    assert Bundle.from_pretrained(REPOSITORY, revision=published.refs["main"]).path == first.path


@pytest.mark.parametrize("listed", ["weights.pkl", "weights.bin", "program.pt2", "model.onnx.py", "../x.onnx", ".onnx"])
def test_a_manifest_with_anything_but_onnx_and_safetensors_is_refused_before_it_is_fetched(
    hub, published, obfuscator_bundle, listed
):
    files = {**obfuscator_bundle.files, listed: "0" * 64}
    changed = {MANIFEST.replace(".", "__"): manifest(obfuscator_bundle, files=files)}
    published.commit_folder(obfuscator_bundle.path, **changed)
    with pytest.raises(BundleError, match="only ONNX and safetensors"):
        Bundle.from_pretrained(REPOSITORY)
    assert hub.fetched() == [MANIFEST]


def test_a_newer_schema_is_named_before_anything_else_is_fetched(hub, published, obfuscator_bundle):
    published.commit_folder(obfuscator_bundle.path, bundle__json=manifest(obfuscator_bundle, schema="sfumato.bundle/3"))
    with pytest.raises(BundleError, match=r"'sfumato.bundle/3'.*pip install --upgrade sfumato"):
        Bundle.from_pretrained(REPOSITORY)
    assert hub.fetched() == [MANIFEST]


def test_a_changed_file_is_refused(hub, published, obfuscator_bundle):
    published.commit_folder(obfuscator_bundle.path, obfuscator__onnx=b"another")
    with pytest.raises(BundleError, match=r"the manifest says.*fetched again"):
        Bundle.from_pretrained(REPOSITORY)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b"\x80\x04.", "config.json": b"{}"}, "no whole bundle: bundle.json is missing"),
        ({MANIFEST: b"{"}, "cannot be read as JSON"),
        ({MANIFEST: b"[]"}, "schema None"),
    ],
)
def test_a_repository_without_a_bundle(hub, files, says):
    hub.repositories[REPOSITORY] = Repository()
    hub.repositories[REPOSITORY].commit(files)
    with pytest.raises(BundleError, match=says):
        Bundle.from_pretrained(REPOSITORY)
    assert set(hub.fetched()) <= {MANIFEST}


def test_a_bundle_that_is_not_whole(hub, obfuscator_bundle):
    hub.repositories[REPOSITORY] = Repository()
    hub.repositories[REPOSITORY].commit({MANIFEST: manifest(obfuscator_bundle)})
    with pytest.raises(BundleError, match=r"no whole bundle: obfuscator.onnx is missing"):
        Bundle.from_pretrained(REPOSITORY)


def test_a_private_repository_needs_the_token_which_shows_nowhere(hub, published, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    published.private = True
    with pytest.raises(BundleError, match=r"or it is private.*hf auth login"):
        Bundle.from_pretrained(REPOSITORY)
    with pytest.raises(BundleError, match="no such repository"):
        Bundle.from_pretrained("someone/else")
    assert set(hub.tokens) == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "expired" * 5)
    with pytest.raises(BundleError) as refused:
        Bundle.from_pretrained(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Bundle.from_pretrained(REPOSITORY)
    assert hub.tokens[-1] == f"Bearer {TOKEN}"
    published.gated = True
    published.commit({MANIFEST: b"{}"}, "other")
    with pytest.raises(BundleError, match="consent") as gated:
        Bundle.from_pretrained(REPOSITORY, revision="other")
    told = "".join((caplog.text, *capfd.readouterr(), str(refused.value), str(gated.value)))
    assert TOKEN not in told and "expiredexpired" not in told


def test_a_revision_that_moved_is_named_and_a_commit_stays(hub, published, obfuscator_bundle):
    before = Bundle.from_pretrained(REPOSITORY)
    old = published.refs["main"]
    new = published.commit_folder(obfuscator_bundle.path, bundle__json=manifest(obfuscator_bundle, name="other"))
    with pytest.warns(RevisionMoved, match=f"from {old[:12]} to {new[:12]}.*hf://{REPOSITORY}@{new}"):
        assert Bundle.from_pretrained(REPOSITORY).name == "other"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bundle.from_pretrained(REPOSITORY).name == "other"
        assert Bundle.from_pretrained(REPOSITORY, revision=old).to_json() == before.to_json()


def test_a_revision_that_moves_meanwhile_gives_files_of_one_commit(hub, published, obfuscator_bundle, monkeypatch):
    import huggingface_hub

    fetch = huggingface_hub.hf_hub_download

    def moving(repository, name, **options):
        file = fetch(repository, name, **options)
        published.commit_folder(obfuscator_bundle.path, obfuscator__onnx=b"of a later commit")
        return file

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", moving)
    assert Bundle.from_pretrained(REPOSITORY).to_json() == obfuscator_bundle.to_json()


def test_a_revision_that_is_gone(hub, published):
    with pytest.raises(BundleError, match="no revision 'gone'"):
        Bundle.from_pretrained(REPOSITORY, revision="gone")


def test_a_hub_that_fails_or_is_not_there(hub, published, monkeypatch):
    from huggingface_hub import constants

    hub.fails = 400
    with pytest.raises(BundleError, match="HTTP 400"):
        Bundle.from_pretrained(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match=r"HF_HUB_OFFLINE is set, and the cache does not have bundle.json"):
        Bundle.from_pretrained(REPOSITORY)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match="pip install huggingface_hub"):
        Bundle.from_pretrained(REPOSITORY)


def test_nothing_is_saved_into_the_cache(hub, published):
    found = Bundle.from_pretrained(REPOSITORY)
    assert in_cache(found.path)
    with pytest.raises(BundleError, match="change a copy"):
        found.save()


def test_the_librarys_own_settings_hold_in_a_process_of_its_own(tmp_path, obfuscator_bundle):
    """Its endpoint, cache and offline mode are read from the environment when it is imported, which is on use."""
    code = (
        "import sys, sfumato, sfumato.device\nassert 'huggingface_hub' not in sys.modules\n"
        f"print(sfumato.Bundle.from_pretrained('{REPOSITORY}').path)"
    )

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), **more}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    with serving() as hub:
        hub.repositories[REPOSITORY] = Repository()
        hub.repositories[REPOSITORY].commit_folder(obfuscator_bundle.path)
        offline = run(HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in offline.stderr and hub.requests == []
        done = run()
        assert done.returncode == 0 and str(tmp_path) in done.stdout, done.stderr
        asked = len(hub.requests)
        assert run(HF_HUB_OFFLINE="1").stdout == done.stdout and len(hub.requests) == asked


@pytest.fixture
def own(tmp_path: Path, obfuscator_bundle: Bundle) -> Bundle:
    """A bundle with what the lab alone needs in it, and paths that name a person."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in (OBFUSCATOR_ONNX, DEOBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS):
        (folder / name).write_bytes((obfuscator_bundle.path / OBFUSCATOR_ONNX).read_bytes())
    recipe = RecipeRecord.from_json({"kind": "sketch", "data": {"source": "/home/ada/faces"}, "classifier": "~ada/net"})
    facts = Provenance.from_json({"data": "C:\\Users\\ada\\faces", "commit": "abc"})
    return Bundle(**{**vars(obfuscator_bundle), "path": folder, "recipe": recipe, "provenance": facts}).save()


def test_a_bundle_is_pushed_without_what_is_the_labs(hub, own, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = own.push_to_hub(REPOSITORY, card="# mine\n")
    repository = hub.repositories[REPOSITORY]
    assert repository.private and repository.refs["main"] == commit
    held = repository.commits[commit]
    assert sorted(held) == [".gitattributes", "README.md", MANIFEST, OBFUSCATOR_ONNX]
    assert held["README.md"] == b"# mine\n" and b"ada" not in held[MANIFEST]
    found = Bundle.from_pretrained(REPOSITORY, revision=commit)
    assert found.recipe.data == {"source": "faces"} and found.provenance.data == "faces"
    assert found.files == {OBFUSCATOR_ONNX: own.files[OBFUSCATOR_ONNX]}


def test_a_second_push_replaces_the_models_and_another_branch_does_not(hub, own, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    split, _ = tiny.save_split_bundles(tmp_path / "split")
    first = split.push_to_hub(REPOSITORY, card="# split")
    branched = own.push_to_hub(REPOSITORY, card="# mine", revision="next")
    held = hub.repositories[REPOSITORY]
    assert held.refs == {"main": first, "next": branched}
    assert "decoder.onnx" in held.commits[first] and "decoder.onnx" not in held.commits[branched]
    assert Bundle.from_pretrained(REPOSITORY).path != Bundle.from_pretrained(REPOSITORY, revision="next").path


def test_a_repository_with_something_else_is_left_alone(hub, own, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[REPOSITORY] = Repository()
    before = hub.repositories[REPOSITORY].commit({"README.md": b"# a language model", "config.json": b"{}"})
    with pytest.raises(BundleError, match=r"something else \(README.md, config.json\)"):
        own.push_to_hub(REPOSITORY, card="# mine")
    assert hub.repositories[REPOSITORY].refs == {"main": before}


def test_a_push_without_a_token_or_of_a_damaged_bundle(hub, own, damaged):
    with pytest.raises(BundleError, match=r"refuses access \(HTTP 401\): log in"):
        own.push_to_hub(REPOSITORY, card="# mine")
    undamaged = Bundle(**{**vars(own), "path": damaged})
    with pytest.raises(BundleError):
        undamaged.push_to_hub(REPOSITORY, card="# mine")
    assert hub.repositories == {}
