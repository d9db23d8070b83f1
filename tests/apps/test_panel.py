from __future__ import annotations

import numpy as np
import pytest

from sfumato.apps.panel import Caption, draw_panel


def colours(value: int, count: int = 2) -> list[np.ndarray]:
    return [np.full((32, 32, 3), value, np.uint8) for _ in range(count)]


def test_every_image_is_on_the_panel():
    panel = np.asarray(draw_panel([("first", colours(40)), ("second", colours(200))], [Caption("a"), Caption("b")]))
    for value in (40, 200):
        assert (panel == value).all(axis=2).sum() == 2 * 96 * 96


def test_a_wrong_answer_is_red():
    good, bad = (np.asarray(draw_panel([("", colours(9, 1))], [Caption("cat", good=good)])) for good in (True, False))
    assert not ((good[..., 0] > 150) & (good[..., 1] < 80)).any()
    assert ((bad[..., 0] > 150) & (bad[..., 1] < 80)).any()


def test_rows_of_different_length_are_refused():
    with pytest.raises(ValueError, match="for 1 captions"):
        draw_panel([("", colours(9, 2))], [Caption("a")])


def test_text_stands_where_there_is_no_image():
    panel = np.asarray(draw_panel([("", [colours(40, 1)[0], "nothing\nis sent"])], [Caption("a"), Caption("b")]))
    assert (panel == 40).all(axis=2).sum() == 96 * 96
    blank = (panel == (241, 243, 244)).all(axis=2).sum()
    assert 0.7 * 96 * 96 < blank < 96 * 96, "a light tile with some writing on it"


def test_a_note_takes_a_line_of_its_own():
    without = draw_panel([("", colours(9, 1))], [Caption("cat")])
    with_note = draw_panel([("", colours(9, 1))], [Caption("cat", note="on the device")])
    assert with_note.height > without.height
    assert np.asarray(with_note)[without.height :].min() < 200
