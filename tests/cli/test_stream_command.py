"""`sfumato classify` of a folder in which images appear, and of videos: real processes and real files."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recording import Exchange, leaked, recording
from sfumato.artifacts.bundle import Bundle
from tiny import LABELS, image, sure_image, unsure_image
from videos import write_video


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sfumato", "classify", *map(str, arguments)]


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@contextlib.contextmanager
def watching(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    # Ctrl-C is heeded also where these tests run in the background, and the shell has it ignored.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heeded)
    try:
        assert process.stderr is not None and "watching" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def drop(folder: Path, name: str, pixels: Any) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    (folder / name).write_bytes(content.getvalue())


def line_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_a_watched_folder_until_ctrl_c(tmp_path: Path, gated_bundle: Bundle) -> None:
    drop(tmp_path, "before.png", image())
    with recording() as server:
        options = ("--server", server.url, "--bundle", gated_bundle.path, "--json")
        with watching("--watch", tmp_path, *options) as process:
            drop(tmp_path, "a.png", sure_image())
            first = line_of(process)  # it does not wait for the next one
            drop(tmp_path, "b.png", unsure_image())
            second = line_of(process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert [Path(line["file"]).name for line in (first, second)] == ["a.png", "b.png"]
    assert [line["predicted_by"] for line in (first, second)] == ["device", "cloud"]
    assert first["label"] == "cat" and second["label"] in LABELS
    assert (process.returncode, out) == (0, "")
    assert err.splitlines() == ["1 handled on-device; 1 sent, obfuscated; 0 without a prediction"]
    assert leaked(server.recorded, sure_image()) | leaked(server.recorded, unsure_image()) == set()


def test_a_watch_outlives_a_bad_image_and_a_server_that_fails_for_a_while(
    tmp_path: Path, obfuscator_bundle: Bundle
) -> None:
    def broken(exchange: Exchange) -> None:
        exchange.reply(500)

    with recording(infer=broken) as server:
        options = ("--server", server.url, "--bundle", obfuscator_bundle.path, "--json")
        with watching("--watch", tmp_path, *options) as process:
            (tmp_path / "junk.png").write_bytes(b"junk")
            assert "not an image" in line_of(process)["error"]
            drop(tmp_path, "a.png", image(1))
            assert "500" in line_of(process)["error"]
            server.behaviours.clear()
            drop(tmp_path, "b.png", image(2))
            assert line_of(process)["label"] in LABELS
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert process.returncode == 1  # some were not answered
    assert leaked(server.recorded, image(1)) | leaked(server.recorded, image(2)) == set()


def test_a_video(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    video = write_video(tmp_path / "a.mp4")
    with recording() as server:
        options = ("--server", server.url, "--bundle", obfuscator_bundle.path)
        lines = [json.loads(line) for line in run(video, *options, "--json").stdout.splitlines()]
        told = run(video, *options, "--every", "1.5", "--top", "2")
    assert [line["at_s"] for line in lines] == [0, 1, 2]
    assert all(line["file"] == str(video) and line["label"] in LABELS for line in lines)
    assert len(told.stdout.splitlines()) == 2 and "at 1.500 s: " in told.stdout
    assert told.stderr == "0 handled on-device; 2 sent, obfuscated; 0 without a prediction\n"


def test_a_video_ends_where_the_server_fails(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    with recording(infer=lambda e: e.reply(500)) as server:
        done = run(write_video(tmp_path / "a.mp4"), "--server", server.url, "--bundle", obfuscator_bundle.path, code=1)
    assert "error: " in done.stderr and "500" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to classify"),
        (["a.png", "--every", "2"], "--every is for videos"),
        (["--watch", "no-such-folder"], "cannot watch the folder no-such-folder"),
    ],
)
def test_what_cannot_be_asked_for(arguments: list[str], says: str, obfuscator_bundle: Bundle) -> None:
    done = run(*arguments, "--server", "http://localhost:1", "--bundle", obfuscator_bundle.path, code=1)
    assert says in done.stderr and done.stdout == ""
