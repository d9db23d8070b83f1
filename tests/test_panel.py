from __future__ import annotations

import numpy as np
import pytest

from sfumato.panel import Caption, draw_panel


def colours(value: int, count: int = 2) -> list[np.ndarray]:
    return [np.full((32, 32, 3), value, np.uint8) for _ in range(count)]


def test_every_picture_is_on_the_panel():
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
