"""What the lab keeps of an obfuscator: where it is found, and that it is not handed out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.lab_files import (
    find_lab_file,
    lab_file,
    lab_folder,
    new_lab_folder,
    refuse_deobfuscator,
    save_lab,
    write_device_bundle,
)
from sfumato.errors import BundleError
from tiny import save_bundles

NAME = "obfuscator.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Bundle:
    """A run's bundle, with one file in its lab folder."""
    made, _ = save_bundles(tmp_path / "elsewhere")
    shutil.copytree(made.path, tmp_path / "run" / "bundle")
    bundle = Bundle.load(tmp_path / "run" / "bundle")
    (new_lab_folder(bundle.path) / NAME).write_bytes(b"weights")
    save_lab(bundle)
    return bundle


def old(folder: Path) -> Bundle:
    """A bundle as earlier versions wrote it, with the lab's files inside."""
    made, _ = save_bundles(folder)
    for name in (NAME, "deobfuscator.onnx"):
        (made.path / name).write_bytes(b"weights")
    return made.save()


def test_a_file_is_found_in_the_labs_folder_and_not_in_the_bundle(run: Bundle, tmp_path: Path) -> None:
    assert lab_file(run, NAME) == tmp_path / "run" / "lab" / NAME
    assert NAME not in run.files and find_lab_file(run, "deobfuscator.onnx") is None
    with pytest.raises(BundleError, match=r"no deobfuscator\.onnx, nor has .*lab: it is a device's bundle"):
        lab_file(run, "deobfuscator.onnx")


def test_a_bundle_of_another_name_has_a_lab_folder_of_its_own(tmp_path: Path) -> None:
    assert lab_folder(tmp_path / "mine") == tmp_path / "mine-lab"


def test_files_inside_a_bundle_of_an_earlier_version_are_found(tmp_path: Path) -> None:
    made = old(tmp_path)
    assert lab_file(made, NAME) == made.path / NAME


def test_a_changed_file_a_strange_manifest_and_anothers_folder_are_refused(run: Bundle) -> None:
    folder = lab_folder(run.path)
    (folder / NAME).write_bytes(b"weighty")
    with pytest.raises(BundleError, match="changed or damaged"):
        find_lab_file(run, NAME)
    about = json.loads((folder / "lab.json").read_text())
    (folder / "lab.json").write_text(json.dumps({**about, "obfuscator": "0" * 64}))
    with pytest.raises(BundleError, match="belongs to another obfuscator"):
        find_lab_file(run, NAME)
    for text in ("[]", "{", '{"schema": 1}', "[" * 100_000):
        (folder / "lab.json").write_text(text)
        with pytest.raises(BundleError, match=r"lab\.json cannot be read"):
            find_lab_file(run, NAME)


def test_somebody_elses_folder_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        new_lab_folder(tmp_path / "bundle")
    assert (tmp_path / "lab" / "notes.txt").read_text() == "mine"


def test_a_devices_bundle_has_what_a_device_needs_and_nothing_else(tmp_path: Path) -> None:
    made = old(tmp_path)
    device = write_device_bundle(made, tmp_path / "device")
    assert sorted(path.name for path in device.path.iterdir()) == ["bundle.json", "obfuscator.onnx"]
    assert device.files == {"obfuscator.onnx": made.files["obfuscator.onnx"]} and device.labels == made.labels
    with pytest.raises(BundleError, match="--overwrite"):
        write_device_bundle(made, tmp_path / "device")
    assert write_device_bundle(made, tmp_path / "device", overwrite=True).files == device.files
    with pytest.raises(BundleError, match="the bundle itself"):
        write_device_bundle(made, made.path, overwrite=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        write_device_bundle(made, tmp_path / "other", overwrite=True)


def test_a_deobfuscator_is_not_handed_out_unless_it_was_shipped(tmp_path: Path) -> None:
    made = old(tmp_path)
    with pytest.raises(BundleError, match=r"sfumato export --device .* -o "):
        refuse_deobfuscator(made)
    refuse_deobfuscator(write_device_bundle(made, tmp_path / "device"))
    for sample in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()):
        refuse_deobfuscator(Bundle.load(sample))
        refuse_deobfuscator(Bundle.load(shutil.copytree(sample, tmp_path / sample.name)))
