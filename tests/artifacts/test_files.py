"""Files that are whole or not there, JSON that names what is wrong with it, and folders of one process."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from full_disk import check_whole_or_old, disk_with_room_for
from sfumato.artifacts.files import exclusive, read_json, whole_file, whole_folder, write_json
from sfumato.errors import AuditError, BundleError, ResultsError, TrainingError

LEAF = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(LEAF | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@given(value=JSON)
def test_what_was_written_is_read(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "value.json"
    write_json(file, value)
    assert read_json(file) == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": {"height": Infinity}}', r"a\.height is inf"),
        ('{"a": [{"b": [1, NaN]}]}', r"a\[0\]\.b\[1\] is nan"),
        ('{"a": -Infinity}', "a is -inf"),
        ('{"a": 1e400}', "a is inf"),
        ('{"a": [1%s]}' % ("0" * 400), r"a\[0\] has 401 digits"),
        ('{"a": 1%s}' % ("0" * 5000), "digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('{"a": "\\ud800"}', "a holds half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("[" * 150 + "]" * 150, "more than 100 levels deep"),
        ('{"a":' * 100_000, "more than 100 levels deep"),
        ("[1,\n 2,\n 3", "line 3"),
        ("", "line 1"),
        ("\xff", "utf-8"),
    ],
)
def test_what_nobody_can_use_is_refused_with_its_place(tmp_path, content, said):
    file = tmp_path / "x.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(AuditError, match=said) as raised:
        read_json(file, AuditError)
    assert str(file) in str(raised.value) and len(str(raised.value)) < 400 + len(str(file))


def test_figures_that_may_be_infinite_are_read(tmp_path):
    figures = {"psnr_db": math.inf, "joint_deobfuscator_psnr_db": math.inf, "rows": [{"mse_bound_unbiased": math.inf}]}
    write_json(tmp_path / "x.json", figures)
    assert read_json(tmp_path / "x.json") == figures
    write_json(tmp_path / "x.json", {"ssim": math.nan})
    assert math.isnan(read_json(tmp_path / "x.json")["ssim"])


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ResultsError, match="No such file"):
        read_json(tmp_path / "absent.json", ResultsError)
    with pytest.raises(BundleError, match=r"cannot be read: .*directory"):
        read_json(tmp_path)
    (tmp_path / "large.json").touch()
    with (tmp_path / "large.json").open("r+b") as stream:
        stream.truncate(2**40)  # takes no room on the disk
    with pytest.raises(BundleError, match="more than 64 MiB"):
        read_json(tmp_path / "large.json")


def test_a_full_disk_leaves_the_old_json(tmp_path):
    file = tmp_path / "x.json"
    check_whole_or_old(file, lambda: write_json(file, {"numbers": list(range(5000))}))


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_whatever_stops_a_writer_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "x"
    file.write_text("old")
    with pytest.raises(error), whole_file(file) as partial:
        partial.write_text("half")
        raise error
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_of_a_link_the_file_that_it_points_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    with whole_file(link) as partial:
        partial.write_text("new")
    assert link.is_symlink() and file.read_text() == "new"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder, BundleError) as partial:
        (partial / "a").write_text("old")
    with whole_folder(folder, BundleError) as partial:
        assert (folder / "a").read_text() == "old", "it is there all the time"
        (partial / "b").write_text("new")
    assert [file.name for file in folder.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [folder]
    with (
        disk_with_room_for(10),
        pytest.raises(TrainingError, match="cannot be written: File too large"),
        whole_folder(folder, TrainingError) as partial,
    ):
        (partial / "c").write_text("too long for this disk")
    assert (folder / "b").read_text() == "new" and list(tmp_path.iterdir()) == [folder]
    with pytest.raises(KeyError), whole_folder(folder, TrainingError):
        raise KeyError
    assert (folder / "b").read_text() == "new" and list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    with whole_folder(folder, BundleError) as partial:
        (partial / "a").write_text("old")
    monkeypatch.setattr(Path, "rename", lambda self, to: refuse() if "partial" in self.name else rename(self, to))

    def refuse():
        raise OSError("not today")

    with pytest.raises(BundleError, match="not today"), whole_folder(folder, BundleError):
        pass
    assert (folder / "a").read_text() == "old" and list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_worked_in_by_one_process_alone(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from sfumato.artifacts.files import exclusive\n"
        "from sfumato.errors import TrainingError\n"
        "with exclusive(Path(sys.argv[1]), TrainingError): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="another process is at work"), exclusive(tmp_path, TrainingError):
            pytest.fail("both are at work")
        with exclusive(tmp_path, TrainingError, part="-1-of-2"):
            pass
        other.kill()  # as the system would when memory runs out
    with exclusive(tmp_path, TrainingError):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(TrainingError, match="cannot be written"),
        exclusive(tmp_path / "file", TrainingError),
    ):
        pass


def test_json_is_written_for_people_and_machines(tmp_path):
    value = {"ä": [1, 2.5, None, {"deep": True}]}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
    assert "ä" in (tmp_path / "x.json").read_text(encoding="utf-8")
