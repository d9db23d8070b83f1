"""Images into a folder: in several processes, whole or not at all, and again where it was left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from full_disk import disk_with_room_for
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Obfuscator
from sfumato.device.image_folders import Share, find_images
from sfumato.device.protect import GROUP, Existing, Outcome, Protecting, protect_images
from sfumato.errors import BundleError, SfumatoError


def save(folder: Path, count: int) -> Path:
    for seed in range(count):
        file = folder / f"{seed % 3}" / f"p{seed:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.image(seed, 12, 10)).save(file)
    return folder


def protect(
    source: Path, out: Path, bundle: Bundle, *, workers: int = 1, existing: Existing = "refuse", tensors: bool = True
) -> list[Outcome]:
    how = Protecting.into(out, bundle.path, tensors=tensors, gate=False, existing=existing)
    groups = protect_images(find_images([source]), how, workers=workers)
    return [outcome for group in groups for outcome in group]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_processes_write_what_one_writes_and_that_is_what_is_sent(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source = save(tmp_path / "images", 3 * GROUP + 5)
    alone = protect(source, tmp_path / "alone", obfuscator_bundle)
    together = protect(source, tmp_path / "together", obfuscator_bundle, workers=2)
    assert [outcome.file for outcome in alone] == [outcome.file for outcome in together]
    assert content(tmp_path / "alone") == content(tmp_path / "together")
    assert {outcome.state for outcome in alone} == {"written"} and len(alone) == 3 * GROUP + 5
    obfuscator = Obfuscator(obfuscator_bundle)
    for outcome in alone[:: len(alone) // 3]:
        sent = obfuscator.obfuscate(outcome.file)
        assert outcome.tensor is not None and outcome.preview is not None
        np.testing.assert_array_equal(np.load(outcome.tensor), sent.tensor)
        np.testing.assert_array_equal(np.asarray(Image.open(outcome.preview)), np.asarray(sent.preview()))


def test_what_cannot_be_used_is_told_and_leaves_nothing(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source = save(tmp_path / "images", 2 * GROUP)
    (source / "0" / "broken.png").write_bytes(b"junk")
    (source / "0" / "half.png").write_bytes((source / "0" / "p000.png").read_bytes()[:60])
    outcomes = protect(source, tmp_path / "out", obfuscator_bundle, workers=2)
    failed = {Path(outcome.file).name: outcome.error for outcome in outcomes if outcome.state == "failed"}
    assert failed.keys() == {"broken.png", "half.png"} and all(failed.values())
    written = content(tmp_path / "out")
    assert len(written) == 2 * 2 * GROUP
    assert not [name for name in written if "broken" in name or "half" in name or name.endswith(".partial")]


def test_what_is_there_is_kept_replaced_or_refused(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source, out = save(tmp_path / "images", 4), tmp_path / "out"
    protect(source, out, obfuscator_bundle)
    before = content(out)
    files = sorted(out.rglob("*.png"))
    files[0].write_bytes(b"")  # as after a power cut
    files[1].with_suffix(".npy").unlink()
    files[2].write_bytes(b"mine")
    states = [outcome.state for outcome in protect(source, out, obfuscator_bundle, existing="keep")]
    assert sorted(states) == ["exists", "exists", "written", "written"]
    changed = {name for name, data in content(out).items() if data != before[name]}
    assert changed == {str(files[2].relative_to(out))}, "what is complete is not looked at"
    assert {outcome.state for outcome in protect(source, out, obfuscator_bundle)} == {"failed"}
    assert {outcome.state for outcome in protect(source, out, obfuscator_bundle, existing="replace")} == {"written"}
    assert content(out) == before


def test_two_images_never_become_one_file(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for ending in ("bmp", "png"):
        Image.fromarray(tiny.image(len(ending))).save(source / f"same.{ending}")
    policies: tuple[Existing, ...] = ("refuse", "replace")
    for existing in policies:
        outcomes = protect(source, tmp_path / existing, obfuscator_bundle, existing=existing)
        assert [outcome.state for outcome in outcomes] == ["written", "failed"]
        assert "rename" in (outcomes[1].error or "")


def test_a_bundle_that_hides_nothing_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    bundle, _ = tiny.save_bundles(tmp_path / "bundles", threshold=0.9, own="nan")
    source = save(tmp_path / "images", 3)
    with pytest.raises(BundleError):
        protect(source, tmp_path / "out", bundle)
    assert content(tmp_path / "out") == {}
    with pytest.raises(BundleError):
        protect(source, tmp_path / "out", Bundle.load(bundle.path), workers=2)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SfumatoError, match="cannot write"):
        protect(save(tmp_path / "images", 1), tmp_path / "file", obfuscator_bundle)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGINT])
def test_an_interrupted_run_goes_on(number: signal.Signals, tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source, out = save(tmp_path / "images", 40 * GROUP), tmp_path / "out"
    common = ["protect", source, "-o", out, "--bundle", obfuscator_bundle.path, "--workers", 2]
    command = [sys.executable, "-m", "sfumato", *map(str, common)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(out.rglob("*.png"))) < GROUP:
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    done = content(out)
    assert 0 < len([name for name in done if name.endswith(".png")]) < 40 * GROUP
    if number == signal.SIGINT:
        assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "existed" in again.stdout
    now = content(out)
    assert len([name for name in now if name.endswith(".png")]) == 40 * GROUP
    assert {name: now[name] for name in done if name.endswith(".png")} == {
        name: data for name, data in done.items() if name.endswith(".png")
    }


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    source, out = save(tmp_path / "images", 3 * GROUP), tmp_path / "out"
    first = Protecting.into(out, obfuscator_bundle.path, tensors=False, gate=False, existing="keep")
    running = protect_images(find_images([source]), first)
    next(running)
    with pytest.raises(SfumatoError, match=f"another process is at work in {out}"):
        protect(source, out, obfuscator_bundle, existing="keep")
    for number in (1, 2):  # machines that share the images may share the folder
        share = Share(number, 2)
        how = Protecting.into(out, obfuscator_bundle.path, tensors=False, gate=False, existing="keep", share=share)
        half = protect_images(find_images([source], share=share), how)
        next(half)
        with pytest.raises(SfumatoError, match="at work"):
            next(protect_images(find_images([source], share=share), how))
        half.close()
    running.close()
    assert {outcome.state for outcome in protect(source, out, obfuscator_bundle, existing="keep")} <= {
        "exists",
        "written",
    }
    assert not [name for name in content(out) if not name.endswith((".png", ".npy"))]


@pytest.mark.parametrize("tensors", [False, True])
def test_a_full_disk_leaves_whole_files_and_what_was_there(
    tmp_path: Path, obfuscator_bundle: Bundle, tensors: bool
) -> None:
    source, out = save(tmp_path / "images", 1), tmp_path / "out"
    protect(source, out, obfuscator_bundle, tensors=tensors)
    for file in out.rglob("*.*"):
        file.write_bytes(b"old")
    for room in (0, 1, 50, 90):
        with disk_with_room_for(room), pytest.raises(SfumatoError, match="cannot write"):
            protect(source, out, obfuscator_bundle, existing="replace", tensors=tensors)
        assert set(content(out).values()) == {b"old"} and len(content(out)) == 1 + tensors
