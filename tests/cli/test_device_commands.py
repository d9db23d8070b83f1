"""`protect`, `classify` and `serve` as a person runs them: real files, real sockets, and real processes in part."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from commands import sfumato
from serving import serving
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.out_of_distribution import OodDetector

TOKEN = "s3cret"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sfumato", *map(str, arguments)]


def started(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `sfumato`, in a process of its own."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=120,  # however busy the machine
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(tiny.image(seed, 20, 30)).save(folder / f"p{seed}.png")
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    return folder


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.png"
    file.write_bytes(b"junk")
    return file


@pytest.fixture(scope="module")
def server(tiny_bundles: tuple[Bundle, Bundle]) -> Iterator[dict[str, Any]]:
    with serving(tiny_bundles[1].path, SFUMATO_TOKEN=TOKEN) as (ready, _):
        yield ready


# --- protect --------------------------------------------------------------------------------------


def test_protect_writes_previews_and_tensors(images: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    out = tmp_path / "out" / "deep"
    arguments = ["protect", images, "-o", out, "--bundle", obfuscator_bundle.path, "--tensors"]
    told = json.loads(started(*arguments, "--json").stdout)
    assert told["failed"] == []
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f"p{i}.obfuscated.{ending}" for i in range(3) for ending in ("npy", "png")
    )
    for entry in told["images"]:
        tensor = np.load(entry["tensor"])
        assert (tensor.shape, tensor.dtype) == ((3, 8, 8), np.float32)
        assert Image.open(entry["preview"]).size == (8, 8)
    again = sfumato(*arguments, code=1)
    assert again.stderr.count("--overwrite") == 3
    assert "3 of 3" in sfumato(*arguments, "--overwrite").stdout


def test_protect_resumes_and_shares(images: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    (images / "sub").mkdir()
    (images / "p0.png").rename(images / "sub" / "p0.png")
    out = tmp_path / "out"
    arguments = ["protect", images, "-o", out, "--bundle", obfuscator_bundle.path]
    parts = [json.loads(sfumato(*arguments, "--shard", f"{part}/2", "--json").stdout) for part in (1, 2)]
    assert sorted(len(part["images"]) for part in parts) == [1, 2]
    assert (out / "sub" / "p0.obfuscated.png").is_file()
    (out / "p1.obfuscated.png").unlink()
    done = sfumato(*arguments, "--resume")
    assert done.stdout == f"1 of 3 images written to {out}; 2 existed\n"
    told = json.loads(sfumato(*arguments, "--resume", "--json").stdout)
    assert (len(told["existing"]), told["images"], told["failed"]) == (3, [], [])
    for options, expected in ((["--overwrite", "--resume"], "one of them"), (["--shard", "half"], "2/4")):
        assert expected in sfumato(*arguments, *options, code=1).stderr


def test_protect_goes_on_after_a_bad_file(images: Path, bad: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    out = tmp_path / "out"
    done = sfumato("protect", bad, images, "-o", out, "--bundle", obfuscator_bundle.path, code=1)
    assert str(bad) in done.stderr
    assert "3 of 4" in done.stdout
    assert len(list(out.iterdir())) == 3


def test_protect_does_not_write_two_images_to_one_file(images: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    Image.fromarray(tiny.image(9)).save(images / "p0.bmp")
    arguments = ["protect", images, "-o", tmp_path / "out", "--bundle", obfuscator_bundle.path, "--overwrite"]
    assert "rename" in sfumato(*arguments, code=1).stderr


@pytest.mark.parametrize("what", ["no bundle", "damaged bundle", "empty folder", "out is a file"])
def test_protect_says_in_one_line_what_is_wrong(
    what: str, images: Path, damaged: Path, tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    source = tmp_path / "empty" if what == "empty folder" else images
    out = tmp_path / "file" if what == "out is a file" else tmp_path / "out"
    bundle = {"no bundle": tmp_path / "none", "damaged bundle": damaged}.get(what, obfuscator_bundle.path)
    done = sfumato("protect", source, "-o", out, "--bundle", bundle, code=1)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# --- serve and classify ---------------------------------------------------------------------------


def test_serve_says_where_it_is(server: dict[str, Any], classifier_bundle: Bundle) -> None:
    assert server == {"url": server["url"], "model": "tiny", "fingerprint": classifier_bundle.classifier_fingerprint}
    assert server["url"].startswith("http://127.0.0.1:")


def test_classify(server: dict[str, Any], images: Path, bad: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    arguments = ["classify", images, bad, "--server", server["url"], "--bundle", obfuscator_bundle.path, "--top", 2]
    told = json.loads(started(*arguments, "--json", code=1, SFUMATO_TOKEN=TOKEN).stdout)
    assert told["fingerprint"] == "match"
    assert [Path(answer["file"]).name for answer in told["predictions"]] == ["p0.png", "p1.png", "p2.png"]
    assert [failure["file"] for failure in told["failed"]] == [str(bad)]
    for answer in told["predictions"]:
        assert answer["top"][0]["label"] == answer["label"]
        assert len(answer["top"]) == 2
        assert answer["payload_bytes"] > 768
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    table = sfumato(*arguments, "--token-file", token_file, code=1)
    assert told["predictions"][0]["label"] in table.stdout
    assert "skipped" in table.stderr


def test_classify_says_in_one_line_what_is_wrong(
    server: dict[str, Any], images: Path, tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    common = ["classify", images, "--bundle", obfuscator_bundle.path]
    for extra, token, expected in (
        (["--server", server["url"]], "", "token"),
        (["--server", server["url"]], "wrong", "token"),
        (["--server", server["url"], "--model", "other"], TOKEN, "404"),
        (["--server", "http://127.0.0.1:9"], "", "no connection"),
        (["--server", "nonsense"], "", "must look like https://host:port"),
        (["--server", "http://example.org"], TOKEN, "in the clear"),
        (["--server", server["url"], "--token-file", tmp_path / "none"], "", "token"),
        (["--server", server["url"], "--datatype", "UINT8"], TOKEN, "not 8-bit"),
        (["--server", server["url"], "--datatype", "FP16"], TOKEN, "takes FP32; got FP16"),
        (["--server", "grpc://127.0.0.1"], "", "with a port"),
        (["--server", "grpc://127.0.0.1:9", "--encoding", "json"], "", "no JSON"),
    ):
        done = sfumato(*common, *extra, code=1, SFUMATO_TOKEN=token)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert expected in done.stderr
        assert done.stdout == ""


def test_another_classifier_is_warned_of(images: Path, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    other = tiny.save_classifier(tmp_path / "other.onnx", batch=1)
    with serving(other, "--name", "tiny") as (ready, _):
        done = sfumato("classify", images, "--server", ready["url"], "--bundle", obfuscator_bundle.path)
        assert done.stderr.count("another classifier") == 1


def test_with_a_decoder_codes_are_answered_too(images: Path, tmp_path: Path) -> None:
    obfuscator, classifier = tiny.save_split_bundles(tmp_path / "split")
    with serving(classifier.path, "--decoder", obfuscator.path) as (ready, _):
        assert (ready["model"], ready["split_model"]) == ("tiny", "tiny-split")
        arguments = ["classify", images, "--server", ready["url"], "--bundle", obfuscator.path, "--json"]
        whole, split = (json.loads(sfumato(*arguments, *more).stdout) for more in ([], ["--split"]))
    assert split["model"] == "tiny-split" and split["fingerprint"] == "match"
    for drawn, code in zip(whole["predictions"], split["predictions"], strict=True):
        assert code["label"] == drawn["label"]
        assert drawn["payload_bytes"] - code["payload_bytes"] > 3 * 8 * 8 * 4 - 8


def test_serve_says_in_one_line_what_is_wrong(
    server: dict[str, Any], tmp_path: Path, classifier_bundle: Bundle, obfuscator_bundle: Bundle
) -> None:
    port = server["url"].rsplit(":", 1)[1]
    for arguments, expected in (
        ([tmp_path / "none.onnx"], "no model"),
        ([classifier_bundle.path, "--port", port], "cannot listen"),
        ([classifier_bundle.path, "--name", "a/b"], "called"),
        ([classifier_bundle.path, "--decoder", obfuscator_bundle.path], "has no decoder.onnx"),
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
    code += "from sfumato.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == "error: uvicorn is not installed; run: pip install 'sfumato[serve]'\n"


# --- with a gate ----------------------------------------------------------------------------------

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Sure, unsure, sure, unsure, by name."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for seed, make in enumerate(2 * (tiny.sure_image, tiny.unsure_image)):
        Image.fromarray(make(seed, 20, 30)).save(folder / f"p{seed}.png")
    return folder


def test_classify_tells_who_answered(server: dict[str, Any], mixed: Path, gated_bundle: Bundle) -> None:
    arguments = ["classify", mixed, "--server", server["url"], "--bundle", gated_bundle.path]
    told = json.loads(sfumato(*arguments, "--json", SFUMATO_TOKEN=TOKEN).stdout)
    assert [answer["predicted_by"] for answer in told["predictions"]] == ["device", "cloud", "device", "cloud"]
    assert [answer["payload_bytes"] > 0 for answer in told["predictions"]] == [False, True, False, True]
    assert told["predictions"][0]["label"] == "cat"
    assert told["fingerprint"] == "match"
    table = sfumato(*arguments, SFUMATO_TOKEN=TOKEN).stdout
    assert " by " in table and " device " in table
    assert table.splitlines()[-1] == "2 of 4 handled on-device; 2 sent, obfuscated"
    always = sfumato(*arguments, "--always-send", SFUMATO_TOKEN=TOKEN).stdout
    assert always.splitlines()[-1] == "0 of 4 handled on-device; 4 sent, obfuscated"


def test_images_unlike_the_training_images_are_marked(
    server: dict[str, Any], mixed: Path, tmp_path: Path, gated_bundle: Bundle
) -> None:
    copy = shutil.copytree(gated_bundle.path, tmp_path / "copy")
    arguments = ["classify", mixed, "--server", server["url"], "--bundle", copy]
    flags = []
    for threshold in (None, -1000.0, 1000.0):
        if threshold is not None:
            replace(Bundle.load(copy), ood_detector=OodDetector(threshold, 0.05, 100)).save()
        told = json.loads(sfumato(*arguments, "--json", SFUMATO_TOKEN=TOKEN).stdout)
        flags.append({one["out_of_distribution"] for one in told["predictions"]})
        marked = sfumato(*arguments, SFUMATO_TOKEN=TOKEN, COLUMNS="250").stdout.count("do not rely on this")
        assert marked == (4 if threshold == 1000.0 else 0)
    assert flags == [{None}, {False}, {True}]


def test_classify_offline_answers_what_the_device_can(mixed: Path, gated_bundle: Bundle) -> None:
    arguments = ["classify", mixed, "--server", NOWHERE, "--bundle", gated_bundle.path]
    told = sfumato(*arguments, "--json", code=1)
    assert [Path(answer["file"]).name for answer in json.loads(told.stdout)["predictions"]] == ["p0.png", "p2.png"]
    assert json.loads(told.stdout)["fingerprint"] is None
    done = sfumato(*arguments, code=1)
    assert done.stdout.splitlines()[-1] == "2 of 4 handled on-device; 0 sent, obfuscated; 2 without a prediction"
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    always = sfumato(*arguments, "--always-send", code=1)
    assert (always.stdout, "no connection" in always.stderr) == ("", True)


def test_classify_offline_is_well_if_nothing_has_to_be_sent(mixed: Path, gated_bundle: Bundle) -> None:
    arguments = ["classify", mixed / "p0.png", mixed / "p2.png", "--server", NOWHERE, "--bundle", gated_bundle.path]
    done = sfumato(*arguments)
    assert done.stdout.splitlines()[-1] == "2 of 2 handled on-device; 0 sent, obfuscated"
    assert done.stderr == ""


def test_another_classifier_is_warned_of_once_something_is_sent(
    mixed: Path, tmp_path: Path, gated_bundle: Bundle
) -> None:
    other = tiny.save_classifier(tmp_path / "other.onnx", batch=1)
    with serving(other, "--name", "tiny") as (ready, _):
        common = ["--server", ready["url"], "--bundle", gated_bundle.path]
        assert sfumato("classify", mixed, *common).stderr.count("another classifier") == 1
        assert sfumato("classify", mixed / "p0.png", *common).stderr == ""


def test_protect_names_what_stays_and_writes_nothing_for_it(mixed: Path, tmp_path: Path, gated_bundle: Bundle) -> None:
    out = tmp_path / "out"
    arguments = ["protect", mixed, "-o", out, "--bundle", gated_bundle.path]
    done = sfumato(*arguments, "--tensors")
    assert sorted(file.name for file in out.iterdir()) == [
        f"p{seed}.obfuscated.{ending}" for seed in (1, 3) for ending in ("npy", "png")
    ]
    assert f"handled on-device: {mixed / 'p0.png'} (cat, 100 %)" in done.stdout
    assert done.stdout.splitlines()[-1] == f"2 of 4 images written to {out}; 2 handled on-device"
    told = json.loads(sfumato(*arguments, "--overwrite", "--json").stdout)
    assert [Path(entry["file"]).name for entry in told["on_device"]] == ["p0.png", "p2.png"]
    assert {entry["label"] for entry in told["on_device"]} == {"cat"}
    assert all(0.9 <= entry["probability"] <= 1 for entry in told["on_device"])
    assert [Path(entry["file"]).name for entry in told["images"]] == ["p1.png", "p3.png"]
    always = json.loads(sfumato(*arguments, "--overwrite", "--always-send", "--json").stdout)
    assert (len(always["images"]), always["on_device"]) == (4, [])
    assert (out / "p0.obfuscated.png").is_file()


@pytest.mark.parametrize("own", [None, "nan", "columns"])
def test_a_gate_that_does_not_work_is_told_in_one_line(own: str | None, mixed: Path, tmp_path: Path) -> None:
    bundle, _ = tiny.save_bundles(tmp_path / "bundles", threshold=0.9, own=own)
    for arguments in (["protect", mixed, "-o", tmp_path / "out"], ["classify", mixed, "--server", NOWHERE]):
        done = sfumato(*arguments, "--bundle", bundle.path, code=1)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.parametrize("name", ["protect", "classify", "serve"])
def test_help_teaches(name: str) -> None:
    assert f"sfumato {name} " in sfumato(name, "--help").stdout
