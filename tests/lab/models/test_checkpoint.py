import errno
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from full_disk import disk_with_room_for
from sfumato.errors import TrainingError
from sfumato.lab.models.checkpoint import load_checkpoint, remove_checkpoint, same_identity, save_checkpoint

PARTS = frozenset({"identity", "task", "optimizer", "scheduler", "epoch", "step", "seconds"})


def state(step: int = 3, numbers: int = 20_000) -> dict:
    return {
        "identity": "recipe",
        "task": {"weight": torch.arange(numbers, dtype=torch.float32)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(3.0)}}, "param_groups": []},
        "scheduler": {"last_epoch": 2},
        "epoch": 1,
        "step": step,
        "seconds": 1.5,
    }


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_what_was_saved_is_loaded(path):
    save_checkpoint(path, state())
    loaded = load_checkpoint(path, PARTS)
    assert torch.equal(loaded["task"]["weight"], state()["task"]["weight"])
    assert {**loaded, "task": 0, "optimizer": 0} == {**state(), "task": 0, "optimizer": 0}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("room_bytes", [0, 1000, 60_000])
def test_a_full_disk_leaves_the_old_checkpoint(path, room_bytes):
    save_checkpoint(path, state(step=1))
    save_checkpoint(path, state(step=2))
    files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with disk_with_room_for(room_bytes), pytest.raises(TrainingError, match="kept in"):
        save_checkpoint(path, state(step=3))
    assert load_checkpoint(path, PARTS)["step"] == 2
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == files, "the unfinished file is gone"


def test_a_full_disk_is_named_as_the_reason(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(TrainingError, match="No space left on device") as raised:
        save_checkpoint(path, state())
    assert "kept in" not in str(raised.value), "there is no older one to keep"


def test_a_folder_that_vanished_is_an_error_of_ours(tmp_path):
    with pytest.raises(TrainingError, match="cannot be written"):
        save_checkpoint(tmp_path / "absent" / "checkpoint.pt", state())


def test_nothing_to_resume_is_said(path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        load_checkpoint(path, PARTS)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_refused(path, keep):
    save_checkpoint(path, state())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(TrainingError):
        load_checkpoint(path, PARTS)


def same(loaded, wanted) -> bool:
    return loaded.keys() == wanted.keys() and torch.equal(loaded["task"]["weight"], wanted["task"]["weight"])


def test_every_flipped_bit_is_noticed(path):
    save_checkpoint(path, state(numbers=10))
    whole, dice = path.read_bytes(), random.Random(1)
    directory = range(whole.index(b"PK\x01\x02"), len(whole))  # where a bit may be one that no checksum of zip's covers
    for place in [*directory, *(dice.randrange(len(whole)) for _ in range(200))]:
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(TrainingError, match="cannot be read"):
            load_checkpoint(path, PARTS)


def test_a_flipped_bit_in_a_tensor_of_an_earlier_version_is_named(path):
    with path.open("wb") as stream:
        torch.save(state(), stream)
    whole = bytearray(path.read_bytes())
    whole[whole.index(state()["task"]["weight"].numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(whole)
    with pytest.raises(TrainingError, match=r"the checksum of .*/data/\d+ does not match"):
        load_checkpoint(path, PARTS)


def test_the_one_before_is_used_and_said(path, caplog):
    for step in (1, 2, 3):
        save_checkpoint(path, state(step=step))
    assert load_checkpoint(path, PARTS)["step"] == 3 and not caplog.messages
    path.write_bytes(path.read_bytes()[:-100])
    assert load_checkpoint(path, PARTS)["step"] == 2
    assert len(caplog.messages) == 1 and "cannot be read" in caplog.text and "the one before it is used" in caplog.text
    assert len(list(path.parent.iterdir())) == 2, "one is enough"
    for step in (4, 5):
        save_checkpoint(path, state(step=step))
    assert load_checkpoint(path, PARTS)["step"] == 5
    path.unlink()  # as if the power went between two renames
    assert load_checkpoint(path, PARTS)["step"] == 4


def test_two_damaged_ones_are_an_error(path):
    save_checkpoint(path, state())
    save_checkpoint(path, state())
    for file in path.parent.iterdir():
        file.write_bytes(b"junk")
    with pytest.raises(TrainingError, match=rf"checkpoint {path} cannot be read"):
        load_checkpoint(path, PARTS)


def test_a_disk_without_links_keeps_the_one_before_too(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(path, state(step=1))
    save_checkpoint(path, state(step=2))
    assert load_checkpoint(path, PARTS)["step"] == 2
    path.write_bytes(b"junk")
    assert load_checkpoint(path, PARTS)["step"] == 1


def test_a_checkpoint_of_an_earlier_version_is_read(path):
    """They were written by torch.save alone, with the checksums of its archive."""
    with path.open("wb") as stream:
        torch.save(state(), stream)
    assert same(load_checkpoint(path, PARTS), state())


def test_removing_a_checkpoint_leaves_nothing(path):
    remove_checkpoint(path)
    save_checkpoint(path, state())
    save_checkpoint(path, state())
    remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"garbage", b"\x80\x04.", b"PK\x03\x04" + bytes(64), pickle.dumps({"step": 1})])
def test_what_is_no_checkpoint_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(TrainingError):
        load_checkpoint(path, PARTS)


@pytest.mark.parametrize("key", state())
def test_a_checkpoint_that_lacks_something_is_refused(path, key):
    save_checkpoint(path, {name: value for name, value in state().items() if name != key})
    with pytest.raises(TrainingError, match="not a checkpoint of sfumato"):
        load_checkpoint(path, PARTS)


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), "text", None])
def test_another_thing_than_a_state_is_refused(path, value):
    torch.save(value, path)
    with pytest.raises(TrainingError, match="not a checkpoint of sfumato"):
        load_checkpoint(path, PARTS)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(path, tmp_path, zipped):
    mark = tmp_path / "exploded"
    torch.save({**state(), "seconds": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TrainingError):
        load_checkpoint(path, PARTS)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb of this test does not work"


def test_a_folder_is_not_a_checkpoint(tmp_path):
    with pytest.raises(TrainingError):
        load_checkpoint(tmp_path, PARTS)


def identity(old: bool, **recipe: object) -> str:
    count = "train_pictures" if old else "train_images"
    said = {"kind": "classifier", "name": "x", "note": "", "data": {"source": "cifar10", count: 50}, **recipe}
    return json.dumps({"classifier": None, "data": "a hash", "recipe": said}, sort_keys=True)


def test_a_run_that_an_earlier_version_began_is_the_same_run():
    assert same_identity(identity(old=True), identity(old=False))
    assert same_identity(identity(old=True, note="Thirty epochs."), identity(old=False, note="30 epochs."))
    assert not same_identity(identity(old=True), identity(old=False, name="y"))
    assert same_identity("text", "text") and not same_identity("text", identity(old=False))
