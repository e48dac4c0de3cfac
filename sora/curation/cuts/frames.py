"""The small frames that detectors of shot changes look at: their sizes, those of flashes mended, those that show nothing marked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

HEIGHT, WIDTH = 27, 48  # of the frames of TransNetV2
FLASH = 4  # frames, at most, that a flash lasts
LEAST_FLASH = 12.0  # of 255, by which its first frame differs from the one before it on average
RETURNED = 0.35  # of that difference, at most, is left after it
PLAIN = 4.0  # of 255: the deviation of the pixels of a frame that shows nothing


class Small(NamedTuple):
    """A frame of 27 x 48. mended: the frame was of a flash, and stands for the one before it. blank: it is of one colour, as in a fade."""

    pixels: UInt8[np.ndarray, "27 48 3"]
    mended: bool
    blank: bool


def within(height: int, width: int, short: int) -> tuple[int, int]:
    """The (H, W) of the same aspect whose shorter side is `short` pixels, or that size itself if its shorter side is less."""
    scale = min(1.0, short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "27 48 3"]:
    """A frame stretched to 27 x 48 by averaging areas."""
    if frame.shape[:2] == (HEIGHT, WIDTH):
        return np.ascontiguousarray(frame)
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def steadied(frames: Iterable[UInt8[np.ndarray, "27 48 3"]]) -> Iterator[Small]:
    """The frames, those of flashes replaced by the frame before: one to FLASH brighter frames after which the picture is what it was."""
    ahead: deque[np.ndarray] = deque()
    before: np.ndarray | None = None
    left = 0  # frames of a flash that are still to come
    source = iter(frames)
    while True:
        while len(ahead) <= FLASH and (frame := next(source, None)) is not None:
            ahead.append(frame)
        if not ahead:
            return
        left = left or _flash(before, ahead)
        frame = ahead.popleft()
        mended = False
        if before is not None and left > 0:
            left, frame, mended = left - 1, before, True
        before = frame
        yield Small(frame, mended, bool(frame.std(axis=(0, 1)).max() < PLAIN))


def _flash(before: np.ndarray | None, ahead: deque[np.ndarray]) -> int:
    """How many frames from the next one on are a flash, which is brighter: a few dark ones are the middle of a fade."""
    if before is None or ahead[0].mean() < before.mean() or (jump := unlike(ahead[0], before)) < LEAST_FLASH:
        return 0
    return next((count for count in range(1, len(ahead)) if unlike(ahead[count], before) < RETURNED * jump), 0)


def unlike(one: UInt8[np.ndarray, "27 48 3"], two: UInt8[np.ndarray, "27 48 3"]) -> float:
    """The mean difference of two frames, of 255."""
    return float(np.abs(one.astype(np.int16) - two).mean())
