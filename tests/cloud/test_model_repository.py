"""Models by name and version: what a folder may hold, and what reloading changes and what not."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny
from sfumato import wire
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import Catalogue, ServedModel, Source, sources_in
from sfumato.errors import ModelNotFound, ServingError


@pytest.fixture
def folder(tmp_path: Path, classifier_bundle: Bundle) -> Path:
    """Model "a" in the versions 2 and 10, one as a file and one as a bundle; model "b"; and things that are none."""
    root = tmp_path / "models"
    for model, version in (("a", "2"), ("b", "1")):
        (root / model / version).mkdir(parents=True)
        tiny.save_classifier(root / model / version / "model.onnx")
    shutil.copytree(classifier_bundle.path, root / "a" / "10")
    (root / "README.txt").write_text("hello")
    (root / "a" / "config.pbtxt").write_text("")
    (root / ".git").mkdir()
    return root


def catalogue(root: Path) -> Catalogue:
    return Catalogue(lambda: sources_in(root), Source.open)


def served(catalogue: Catalogue) -> list[tuple[str, str]]:
    return sorted((model.name, model.version) for model in catalogue)


def request() -> wire.InferRequest:
    return wire.InferRequest((wire.Tensor("input", np.ones((1, 3, 8, 8), np.float32)),))


def test_the_highest_number_is_the_default(folder: Path) -> None:
    found = catalogue(folder)
    assert served(found) == [("a", "10"), ("a", "2"), ("b", "1")]
    assert found.find("a").version == "10"
    assert found.find("a", "2").version == "2"
    assert found.metadata("a", "2").versions == ("10", "2")
    assert found.find("a") is found.find("a", "10")
    for name, version in (("c", None), ("a", "3"), ("a", "02")):
        with pytest.raises(ModelNotFound):
            found.find(name, version)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: shutil.rmtree(root), "no folder"),
        (lambda root: [shutil.rmtree(path) for path in (root / "a", root / "b")], "no models"),
        (lambda root: (root / "c").mkdir(), "no versions"),
        (lambda root: (root / "a" / "latest").mkdir(), "number"),
        (lambda root: (root / "a" / "03").mkdir(), "number"),
        (lambda root: (root / "a" / "3").mkdir(), "neither"),
        (lambda root: (root / "b" / "1").rename(root / "b" / "-1"), "number"),
        (lambda root: (root / "a" / "2" / "model.onnx").write_bytes(b"junk"), "cannot be run"),
        (lambda root: (root / "a").rename(root / "a b"), "cannot be called"),
    ],
)
def test_folders_that_cannot_be_served(folder: Path, spoil, told: str) -> None:
    spoil(folder)
    with pytest.raises(ServingError, match=told):
        catalogue(folder)


def test_two_models_of_one_name(classifier_bundle: Bundle, folder: Path) -> None:
    given = Source(classifier_bundle.path, "b")
    with pytest.raises(ServingError, match="two models are called 'b'"):
        Catalogue(lambda: [given, *sources_in(folder)], Source.open)


def test_reloading_takes_what_is_new_and_keeps_what_is_unchanged(folder: Path) -> None:
    async def run() -> None:
        found = catalogue(folder)
        old, kept = found.find("a"), found.find("b")
        shutil.copytree(folder / "a" / "2", folder / "a" / "11")
        shutil.rmtree(folder / "a" / "10")
        under_way = asyncio.create_task(old.infer(request()))
        await asyncio.sleep(0)
        await found.reload()
        assert served(found) == [("a", "11"), ("a", "2"), ("b", "1")]
        assert found.find("b") is kept
        assert (await under_way).model_version == "10", "it had been taken"
        assert (await found.find("a").infer(request())).model_version == "11"
        await found.close()

    asyncio.run(run())


def test_a_changed_file_is_noticed(folder: Path) -> None:
    async def run() -> None:
        found = catalogue(folder)
        old = found.find("b")
        file = folder / "b" / "1" / "model.onnx"
        os.utime(file, ns=(0, 0))
        await found.reload()
        assert found.find("b") is not old
        await found.close()

    asyncio.run(run())


@pytest.mark.parametrize("keep_times", [False, True])
def test_weights_that_were_swapped_in_a_second_file_are_noticed(tmp_path: Path, keep_times: bool) -> None:
    import onnx

    model = onnx.load(tiny.save_classifier(tmp_path / "one.onnx"))
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=10)
    found = Catalogue(lambda: [Source(tmp_path / "two.onnx", "m")], Source.open)

    async def run() -> None:
        old = found.find("m")
        await found.reload()
        assert found.find("m") is old, "nothing has changed"
        before = await old.infer(request())
        data = tmp_path / "two.data"
        times, weights = data.stat(), np.fromfile(data, "<f4")
        (-weights).tofile(data)
        if keep_times:  # as `cp -p` or rsync would
            os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
        await found.reload()
        new = found.find("m")
        assert new is not old and new.fingerprint != old.fingerprint
        assert not np.allclose((await new.infer(request())).outputs[0].array, before.outputs[0].array)
        data.unlink()
        await found.reload()
        assert found.find("m") is new, "what cannot be loaded changes nothing"
        await found.close()

    asyncio.run(run())


@pytest.mark.parametrize("also_without_the_old", [False, True])
def test_a_broken_new_version_is_refused_and_the_old_one_stays(
    folder: Path, caplog: pytest.LogCaptureFixture, also_without_the_old: bool
) -> None:
    async def run() -> None:
        found = catalogue(folder)
        shutil.copytree(folder / "a" / "2", folder / "a" / "11")
        (folder / "a" / "11" / "model.onnx").write_bytes(b"half of a fi")
        if also_without_the_old:
            shutil.rmtree(folder / "a" / "10")
        shutil.copytree(folder / "b", folder / "c")
        await found.reload()
        assert served(found) == [("a", "10"), ("a", "2"), ("b", "1"), ("c", "1")], "the others are not held up"
        assert (await found.find("a").infer(request())).model_version == "10"
        assert "refused version 11 of a" in caplog.text
        await found.close()

    asyncio.run(run())


def test_a_folder_that_makes_no_sense_changes_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        found = catalogue(folder)
        before = list(found)
        (folder / "b" / "newest").mkdir()
        await found.reload()
        shutil.rmtree(folder)
        await found.reload()
        assert list(found) == before
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
        await found.close()

    asyncio.run(run())


def test_a_model_that_breaks_on_the_trial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(ServedModel, "_run", broken)
    with pytest.raises(ServingError, match=r"trial run.*no kernel"):
        ServedModel(tiny.save_classifier(tmp_path / "model.onnx"))
