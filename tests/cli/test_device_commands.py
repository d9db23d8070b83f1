"""`protect`, `classify` and `serve` as a person runs them: real processes, real files, real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from sfumato.bundle import Bundle

TOKEN = "s3cret"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sfumato", *map(str, arguments)]


def sfumato(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(tiny.picture(seed, 20, 30)).save(folder / f"p{seed}.png")
    (folder / "notes.txt").write_text("not a picture, and not taken for one")
    return folder


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.png"
    file.write_bytes(b"junk")
    return file


def start_server(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        command("serve", *arguments, "--port", "0", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, json.loads(line)


@pytest.fixture(scope="module")
def server(tiny_bundles: tuple[Bundle, Bundle]) -> Iterator[dict[str, Any]]:
    process, ready = start_server(tiny_bundles[1].path, SFUMATO_TOKEN=TOKEN)
    yield ready
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (0, "", "")


# --- protect --------------------------------------------------------------------------------------


def test_protect_writes_previews_and_tensors(pictures: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    out = tmp_path / "out" / "deep"
    arguments = ["protect", pictures, "-o", out, "--bundle", obfuscator_bundle.path, "--tensors"]
    told = json.loads(sfumato(*arguments, "--json").stdout)
    assert told["failed"] == []
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f"p{i}.obfuscated.{ending}" for i in range(3) for ending in ("npy", "png")
    )
    for entry in told["pictures"]:
        tensor = np.load(entry["tensor"])
        assert (tensor.shape, tensor.dtype) == ((3, 8, 8), np.float32)
        assert Image.open(entry["preview"]).size == (8, 8)
    again = sfumato(*arguments, code=1)
    assert again.stderr.count("--force") == 3
    assert "3 of 3" in sfumato(*arguments, "--force").stdout


def test_protect_goes_on_after_a_bad_file(pictures: Path, bad: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    out = tmp_path / "out"
    done = sfumato("protect", bad, pictures, "-o", out, "--bundle", obfuscator_bundle.path, code=1)
    assert str(bad) in done.stderr
    assert "3 of 4" in done.stdout
    assert len(list(out.iterdir())) == 3


def test_protect_does_not_write_two_pictures_to_one_file(
    pictures: Path, tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    Image.fromarray(tiny.picture(9)).save(pictures / "p0.bmp")
    arguments = ["protect", pictures, "-o", tmp_path / "out", "--bundle", obfuscator_bundle.path, "--force"]
    assert "rename" in sfumato(*arguments, code=1).stderr


@pytest.mark.parametrize("what", ["no bundle", "damaged bundle", "empty folder", "out is a file"])
def test_protect_says_in_one_line_what_is_wrong(
    what: str, pictures: Path, damaged: Path, tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    source = tmp_path / "empty" if what == "empty folder" else pictures
    out = tmp_path / "file" if what == "out is a file" else tmp_path / "out"
    bundle = {"no bundle": tmp_path / "none", "damaged bundle": damaged}.get(what, obfuscator_bundle.path)
    done = sfumato("protect", source, "-o", out, "--bundle", bundle, code=1)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# --- serve and classify ---------------------------------------------------------------------------


def test_serve_says_where_it_is(server: dict[str, Any], classifier_bundle: Bundle) -> None:
    assert server == {"url": server["url"], "model": "tiny", "fingerprint": classifier_bundle.classifier_fingerprint}
    assert server["url"].startswith("http://127.0.0.1:")


def test_classify(server: dict[str, Any], pictures: Path, bad: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    arguments = ["classify", pictures, bad, "--server", server["url"], "--bundle", obfuscator_bundle.path, "--top", 2]
    told = json.loads(sfumato(*arguments, "--json", code=1, SFUMATO_TOKEN=TOKEN).stdout)
    assert told["fingerprint"] == "match"
    assert [Path(answer["file"]).name for answer in told["answers"]] == ["p0.png", "p1.png", "p2.png"]
    assert [failure["file"] for failure in told["failed"]] == [str(bad)]
    for answer in told["answers"]:
        assert answer["top"][0]["label"] == answer["label"]
        assert len(answer["top"]) == 2
        assert answer["payload_bytes"] > 768
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    table = sfumato(*arguments, "--token-file", token_file, code=1)
    assert told["answers"][0]["label"] in table.stdout
    assert "skipped" in table.stderr


def test_classify_says_in_one_line_what_is_wrong(
    server: dict[str, Any], pictures: Path, tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    common = ["classify", pictures, "--bundle", obfuscator_bundle.path]
    for extra, token, expected in (
        (["--server", server["url"]], "", "token"),
        (["--server", server["url"]], "wrong", "token"),
        (["--server", server["url"], "--model", "other"], TOKEN, "404"),
        (["--server", "http://127.0.0.1:9"], "", "no connection"),
        (["--server", "nonsense"], "", "URL"),
        (["--server", "http://example.org"], TOKEN, "readably"),
        (["--server", server["url"], "--token-file", tmp_path / "none"], "", "token"),
    ):
        done = sfumato(*common, *extra, code=1, SFUMATO_TOKEN=token)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert expected in done.stderr
        assert done.stdout == ""


def test_another_classifier_is_warned_of(pictures: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    other = tiny.save_classifier(tmp_path / "other.onnx", batch=1)
    process, ready = start_server(other, "--name", "tiny")
    try:
        done = sfumato("classify", pictures, "--server", ready["url"], "--bundle", obfuscator_bundle.path)
        assert done.stderr.count("another classifier") == 1
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=15)
    assert process.returncode == 0


def test_serve_says_in_one_line_what_is_wrong(
    server: dict[str, Any], tmp_path: Path, classifier_bundle: Bundle
) -> None:
    port = server["url"].rsplit(":", 1)[1]
    for arguments, expected in (
        ([tmp_path / "none.onnx"], "no model"),
        ([classifier_bundle.path, "--port", port], "cannot listen"),
        ([classifier_bundle.path, "--name", "a/b"], "called"),
        ([classifier_bundle.path, "--tls-cert", tmp_path / "none.pem"], "TLS"),
        ([classifier_bundle.path, "--token-file", tmp_path / "none"], "token"),
    ):
        done = sfumato("serve", *arguments, code=1)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert expected in done.stderr


def test_without_the_extra_serve_says_what_to_install(classifier_bundle: Bundle) -> None:
    code = (
        f"import sys; sys.modules['uvicorn'] = None; sys.argv = ['sfumato', 'serve', {str(classifier_bundle.path)!r}];"
    )
    code += "from sfumato.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == "error: uvicorn is not installed; run: pip install 'sfumato[serve]'\n"


@pytest.mark.parametrize("name", ["protect", "classify", "serve"])
def test_help_teaches(name: str) -> None:
    assert f"sfumato {name} " in sfumato(name, "--help").stdout
