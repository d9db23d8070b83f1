"""Images from a video file, through PyAV (extra `[video]`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.device.image import MAX_PIXELS
from sfumato.errors import ImageError

VIDEO_SUFFIXES = frozenset({".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"})
# Containers that hold their images themselves; FFmpeg knows others, such as playlists, that name further files or
# addresses, which an untrusted file could make it open.
_OPTIONS = {
    "format_whitelist": "avi,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts",
    "protocol_whitelist": "",
}


def video_images(path: Path, *, every_s: float) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield images of a video, the first one and then one every so many seconds.

    Args:
        path: the file.
        every_s: seconds of the video between two images; 0 gives all.

    Yields:
        Its place in the video in seconds, and the image, (H, W, 3) uint8, RGB, upright.

    Raises:
        ImageError: PyAV is not installed, or the file is missing, no video in a known container, damaged, or its
            images are larger than `MAX_PIXELS`.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise ImageError(f"{path} is a video; to read it, run: pip install 'sfumato[video]'") from None
    try:
        with path.open("rb") as file, av.open(file, "r", options=_OPTIONS) as container:
            if not container.streams.video:
                raise ImageError(f"{path}: holds no video")
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise ImageError(f"{path}: {stream.width} x {stream.height} is more than {MAX_PIXELS} pixels")
            taken = 0
            for frame in container.decode(stream):
                at_s = float(frame.time or 0)
                if at_s >= taken * every_s:
                    taken = int(at_s / every_s) + 1 if every_s else 0
                    yield at_s, np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
    except OSError as error:  # PyAV's own errors are OSErrors or ValueErrors
        raise ImageError(f"cannot read the video {path}: {error.strerror or type(error).__name__}") from None
    except ValueError as error:
        raise ImageError(f"cannot read the video {path} ({type(error).__name__})") from None
