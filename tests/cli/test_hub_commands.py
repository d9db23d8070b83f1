"""Commands with bundles on the hub: `hf://owner/name` wherever a bundle is named, and `export --to hub`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.models import ArgumentInfo

import tiny
from commands import sfumato
from hub_fake import TOKEN, Hub, Repository, as_the_hub
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import MANIFEST, OBFUSCATOR_ONNX, Bundle
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.cli.options import bundle_place, place_or_name
from sfumato.cloud import ServedModel, running

MINE, NET = "someone/mine", "someone/net"


@pytest.fixture
def hub(tmp_path: Path, obfuscator_bundle: Bundle, classifier_bundle: Bundle) -> Iterator[Hub]:
    with as_the_hub(tmp_path / "cache") as running_hub:
        for name, bundle in ((MINE, obfuscator_bundle), (NET, classifier_bundle)):
            running_hub.repositories[name] = Repository()
            running_hub.repositories[name].commit_folder(bundle.path)
        yield running_hub


def test_every_option_that_names_a_bundle_takes_one_on_the_hub():
    found = {}
    for command in app.registered_commands:
        for name, kind in command.callback.__annotations__.items():
            for about in getattr(kind, "__metadata__", ()):
                argument = isinstance(about, ArgumentInfo) and "bundle" in (about.help or "").lower()
                if about.metavar == "BUNDLE" or argument:
                    found[f"{command.name} {name}"] = about.parser
    assert len(found) > 15
    assert {where for where, parser in found.items() if parser not in (bundle_place, place_or_name)} == set()


def test_an_image_is_classified_with_bundles_on_the_hub(hub, tmp_path, classifier_bundle):
    Image.fromarray(tiny.image()).save(tmp_path / "photo.png")
    with running([ServedModel(bundle_place(f"hf://{NET}"))]) as url:
        done = sfumato("classify", tmp_path / "photo.png", "--server", url, "--bundle", f"hf://{MINE}", "--json")
    shown = json.loads(done.stdout)
    assert shown["fingerprint"] == "match" and shown["predictions"][0]["label"] in tiny.LABELS


def test_a_server_is_told_which_bundle_is_missing(hub):
    done = sfumato("serve", "hf://someone/else", code=1)
    assert done.stderr.startswith("error: hf://someone/else: there is no such repository, or it is private")
    assert done.stderr.count("\n") == 1


def test_a_bundle_of_the_other_kind_is_named(hub):
    done = sfumato("serve", f"hf://{MINE}", code=1)
    assert "is a bundle of kind 'obfuscator'; one of kind 'classifier' is needed here" in done.stderr


def test_a_moved_revision_is_a_line_of_its_own(hub, tmp_path, obfuscator_bundle):
    words = ("protect", tmp_path / "photo.png", "-o", tmp_path / "out", "--bundle", f"hf://{MINE}", "--overwrite")
    Image.fromarray(tiny.image()).save(tmp_path / "photo.png")
    sfumato(*words)
    changed = json.dumps({**json.loads((obfuscator_bundle.path / MANIFEST).read_text()), "name": "other"}).encode()
    hub.repositories[MINE].commit_folder(obfuscator_bundle.path, bundle__json=changed)
    assert sfumato(*words).stderr.startswith(f"warning: hf://{MINE} has moved from ")
    assert "warning" not in sfumato(*words).stderr


def test_a_shell_that_completes_a_line_fetches_nothing(hub, monkeypatch):
    monkeypatch.setenv("_SFUMATO_COMPLETE", "complete_bash")
    bundle_place(f"hf://{MINE}")
    assert hub.requests == []


def test_a_recipe_names_a_classifier_on_the_hub(hub, tmp_path, classifier_bundle):
    from sfumato.lab.classifiers.importer import classifier_bundle as found

    folder = found(f"hf://{NET}", tmp_path / "unused")
    assert Bundle.load(folder, kind="classifier").files == classifier_bundle.files


def test_a_bundle_on_the_hub_needs_no_import(hub, tmp_path):
    done = sfumato("import", f"hf://{NET}", "-o", tmp_path / "net", code=1)
    assert f"hf://{NET} names a bundle; use it directly" in done.stderr and hub.requests == []


def test_an_audit_does_not_write_into_the_cache(hub, tmp_path, monkeypatch, obfuscator_bundle):
    """Hours of attacks are not lost in the end because the bundle is for reading."""
    from sfumato.cli import audit
    from sfumato.lab.audit.schema import recorded

    found = recorded(Bundle.load(shipped.obfuscator_bundle()))
    folder = bundle_place(f"hf://{MINE}")
    before = (folder / MANIFEST).read_bytes()
    audit._report(found, tmp_path, folder, as_json=True)  # type: ignore[arg-type]
    assert (folder / MANIFEST).read_bytes() == before


def test_a_bundle_is_pushed_with_its_card(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = ("export", "--to", "hub", "--license", "apache-2.0")
    done = sfumato(*words, "-o", "hf://someone/new", "--json")
    held = hub.repositories["someone/new"]
    assert held.private
    commit = held.refs["main"]
    assert json.loads(done.stdout) == {
        "bundle": f"hf://someone/new@{commit}",
        "files": ["decoder.onnx", OBFUSCATOR_ONNX],
        "left_out": ["deobfuscator.onnx", "obfuscator.safetensors"],
    }
    card = held.commits[commit]["README.md"].decode()
    assert "license: apache-2.0" in card and "--bundle hf://someone/new" in card and "model-index" in card
    assert TOKEN not in done.stdout + done.stderr + card
    ours = Bundle.load(shipped.obfuscator_bundle())
    theirs = Bundle.from_pretrained("someone/new", revision=commit)
    assert theirs.figures == ours.figures and theirs.files[OBFUSCATOR_ONNX] == ours.files[OBFUSCATOR_ONNX]
    sfumato(*words, "-o", "hf://someone/open", "--public")
    assert not hub.repositories["someone/open"].private


def test_what_would_be_pushed_is_written_to_a_folder(hub, tmp_path, classifier_bundle):
    place = tmp_path / "net"
    words = ("export", classifier_bundle.path, "--to", "hub", "-o", place)
    assert sfumato(*words).stdout == f"bundle: {place}\n  left out: nothing\n"
    assert hub.requests == [] and Bundle.load(place).files == classifier_bundle.files
    assert "sfumato serve hf://owner/name" in (place / "README.md").read_text()
    assert "--overwrite replaces it" in sfumato(*words, code=1).stderr
    sfumato(*words, "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    sfumato(*words[:-1], tmp_path / "other", "--overwrite", code=1)
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_an_obfuscator_that_is_not_audited_is_said_to_be_so(hub, tmp_path, obfuscator_bundle):
    done = sfumato("export", obfuscator_bundle.path, "--to", "hub", "-o", tmp_path / "mine")
    assert "not audited" in done.stdout and "NOT AUDITED" in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", "hf://a/b"), "add --to hub"),
        (("-o", "x.pte", "--license", "mit"), "--license: only with --to hub"),
        (("-o", "hf://a/b", "--to", "hub", "--images", "3"), "--images: not with --to hub"),
        (("-o", "hf://a", "--to", "hub"), "expected hf://owner/name"),
        (("-o", "hf://a/b", "--to", "hub", "--membership", "none.json"), "none.json cannot be read"),
    ],
)
def test_options_that_do_not_go_together(hub, words, says):
    assert says in sfumato("export", *words, code=1).stderr
    assert hub.requests == []
