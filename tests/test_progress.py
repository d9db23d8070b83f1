"""Progress is reported to whoever asks, from 0 to the end, and to nobody else."""

from __future__ import annotations

import time

from sfumato.cli.progress import bars
from sfumato.progress import mute, silent, tracked


def test_what_is_gone_through_is_reported_step_by_step():
    seen = []
    items = list(tracked("abc", "letters", lambda *now: seen.append(now)))
    assert items == ["a", "b", "c"]
    assert seen == [("letters", done, 3) for done in range(4)]


def test_an_iterator_needs_its_total_told():
    seen = []
    list(tracked(iter("ab"), "letters", lambda *now: seen.append(now), total=5))
    assert seen == [("letters", 0, 5), ("letters", 1, 5), ("letters", 2, 5)]


def test_nobody_has_to_listen():
    assert list(tracked([1], "one", silent)) == [1]
    mute("nothing")


def test_lines_are_printed_and_bars_only_drawn_on_a_terminal(capsys):
    with bars() as shown:
        shown.progress("stage [of] one", 1, 2, "loss 0.5")
        shown.progress("stage [of] one", 2, 2)
        shown.say("epoch 1/2  test: accuracy [0.5]")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "epoch 1/2  test: accuracy [0.5]\n"


def test_a_quiet_command_prints_nothing(capsys):
    with bars(quiet=True) as shown:
        shown.say("a line")
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_long_stage_says_where_it_is(capsys, monkeypatch):
    """From a thread: this stage reports its start alone."""
    monkeypatch.setattr("sfumato.cli.progress.LINE_EVERY_S", 0.02)
    with bars() as shown:
        shown.progress("first epoch", 3, 40, "loss [0.5]")
        time.sleep(0.2)
        shown.progress("first epoch", 40, 40)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and all(line == "0 s: first epoch 3 of 40 loss [0.5]" for line in lines)
    with bars(quiet=True) as shown:
        shown.progress("first epoch", 3, 40)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
