"""Clips of a page, read from the files that commands wrote beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from sora.gate.files import read
from sora.report.page import Video

MOST_BYTES = 256 << 20  # of a clip, which stands in the page itself
LARGEST = 320  # pixels of the longer side of a picture that stands where a video has not loaded


def clip(
    path: Path, caption: str, *, size: tuple[int, int] | None = None, note: str = "", marks: Mapping[str, bool | None] | None = None
) -> Video:
    """A clip of a page, with its middle frame as what is seen before it plays. size: (width, height) of it, where the file is enlarged.

    Raises ValueError for a file that is no video.
    """
    from sora.video.files import CONFINED

    info = CONFINED.probe(path)
    width, height = size or (info.width, info.height)
    return Video(read(path, most=MOST_BYTES), width, height, caption, note, dict(marks or {}), poster(path), still=info.frames == 1)


def poster(path: Path) -> bytes:
    """The middle frame as JPEG; nothing where it cannot be decoded, which the player will show as well as it can."""
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
