"""What docs/versions.md promises: no public name goes or changes unnoticed, and old ones go when they are due."""

from __future__ import annotations

from importlib import import_module

import pytest

import sfumato
from scripts.write_public_names import FILE, OTHERS, STABLE, listing, names_of
from sfumato.cli import renamed

LISTED = FILE.read_text(encoding="utf-8").splitlines()


def test_the_list_is_up_to_date() -> None:
    now = listing().splitlines()
    gone, new = sorted(set(LISTED) - set(now)), sorted(set(now) - set(LISTED))
    assert (gone, new) == ([], []), "read docs/versions.md, then run python -m scripts.write_public_names"
    assert now == LISTED


@pytest.mark.parametrize("module", [*STABLE, *OTHERS])
def test_the_public_names_exist(module: str) -> None:
    loaded, names = import_module(module), names_of(module)
    assert names and all(hasattr(loaded, name) for name in names)
    assert set(names) <= set(dir(loaded))


def test_old_names_lead_to_listed_ones() -> None:
    options = {" ".join(line.split()[1:3]) for line in LISTED if line.startswith("sfumato ")}
    targets = {"transfer": "evaluate"}  # an old command with an option of its own
    assert {new.replace(" int8", "") for new in renamed._COMMANDS.values() if " -" in new} <= options
    for command, table in renamed._OPTIONS.items():
        assert {f"{targets.get(command, command)} {new}" for new in table.values()} <= options, command
    for new in renamed._OF_ALL.values():
        assert any(option.endswith(f" {new}") for option in options)


def test_old_names_go_when_they_are_due() -> None:
    """If this fails, the version has come that says it has none: empty the tables, or name the next minor version."""
    version, due = (tuple(map(int, text.split(".")[:2])) for text in (sfumato.__version__, renamed.GONE_IN))
    assert version < due or not (renamed._COMMANDS or renamed._OPTIONS or renamed._OF_ALL)
    page = (FILE.parent / "versions.md").read_text(encoding="utf-8")
    assert f"those of 0.1 in {renamed.GONE_IN}" in page
