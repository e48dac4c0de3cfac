"""The clips of a page, read from the files beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from sora.gate.files import read
from sora.report.page import Video

MOST_BYTES = 256 << 20  # of a clip, which is embedded in the page
LARGEST = 320  # pixels of the longer side of a video's poster


def clip(
    path: Path, caption: str, *, size: tuple[int, int] | None = None, note: str = "", marks: Mapping[str, bool | None] | None = None
) -> Video:
    """A clip of a page, with its middle frame as the poster. size: (width, height) of the clip, if its file is enlarged.

    Raises ValueError for a file that is no video.
    """
    from sora.video.files import CONFINED

    info = CONFINED.probe(path)
    width, height = size or (info.width, info.height)
    return Video(read(path, most=MOST_BYTES), width, height, caption, note, dict(marks or {}), poster(path), still=info.frames == 1)


def poster(path: Path) -> bytes:
    """The middle frame as JPEG; empty if it cannot be decoded, and the browser then shows what it can."""
    from PIL import Image

    from sora.video.files import CONFINED

    try:
        frames = CONFINED.read(path).frames
    except ValueError:
        return b""
    if not len(frames):
        return b""
    file, image = io.BytesIO(), Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((LARGEST, LARGEST))
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
