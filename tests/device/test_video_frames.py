"""Images of a video, where PyAV is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.device.video_frames import video_images
from sfumato.errors import ImageError
from videos import write_video


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(
    ("every_s", "numbers"), [(1, [0, 10, 20]), (0.35, [0, 4, 7, 11, 14, 18, 21, 25, 28]), (0, range(30))]
)
def test_one_every_so_often(tmp_path: Path, suffix: str, every_s: float, numbers: Any) -> None:
    found = list(video_images(write_video(tmp_path / f"a.{suffix}"), every_s=every_s))
    np.testing.assert_allclose([at_s for at_s, _ in found], [n / 10 for n in numbers], atol=0.002)
    for (_, pixels), number in zip(found, numbers, strict=True):
        assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
        assert abs(float(pixels[32:, 32:].mean()) - 8 * (number % 25)) < 6


def test_it_is_turned_upright(tmp_path: Path) -> None:
    (_, pixels), *_ = video_images(write_video(tmp_path / "a.mp4", images=3, rotation=90), every_s=1)
    corners = {"upper left": pixels[:8, :8], "lower left": pixels[-8:, :8], "upper right": pixels[:8, -8:]}
    assert pixels.shape == (64, 48, 3)
    assert [name for name, corner in corners.items() if corner.mean() > 200] == ["lower left"]  # anticlockwise


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "junk": "junk",
    "empty": "",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_what_is_no_video_or_names_another_file_is_refused(tmp_path: Path, kind: str) -> None:
    other = write_video(tmp_path / "other.mp4")
    (tmp_path / "a.mp4").write_text(PLAYLISTS[kind].format(other))
    with pytest.raises(ImageError, match="cannot read the video"):
        list(video_images(tmp_path / "a.mp4", every_s=1))


def test_one_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(ImageError, match="No such file"):
        list(video_images(tmp_path / "none.mp4", every_s=1))


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"sfumato\[video\]"):
        list(video_images(tmp_path / "a.mp4", every_s=1))
