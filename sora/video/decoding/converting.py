"""Converts decoded frames to upright RGB of one size, in one array."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from sora.video.reader import VideoInfo, covering, middle, too_large

_RED_GREEN_BLUE = (2, 0, 1)  # indices of the planes in a frame of "gbrp"


class Converter:
    """Converts decoded frames to upright RGB of one size; swscale converts colours and resizes in one pass, which is cheaper than two."""

    def __init__(self, info: VideoInfo, size: tuple[int, int] | None) -> None:
        self._reformat = VideoReformatter()
        self._turns, self._mirrored = info.rotation // 90, info.mirrored
        height, width = covering(info.height, info.width, size) if size else (info.height, info.width)
        self._crop = middle(height, width, size)
        self.shape = (*(size or (height, width)), 3)
        self._size = (width, height) if self._turns % 2 else (height, width)
        shrinks = height < info.height and width <= info.width
        self._filter = (
            (Interpolation.AREA if shrinks else Interpolation.LANCZOS) | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        )
        self._last: tuple[VideoFrame, np.ndarray] | None = None

    def __call__(self, frame: VideoFrame, out: UInt8[np.ndarray, "H W 3"] | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The picture, written to `out` if it is given."""
        out = np.empty(self.shape, np.uint8) if out is None else out
        if self._last is not None and self._last[0] is frame:
            out[...] = self._last[1]
            return out
        height, width = self._size
        if (frame.height, frame.width, frame.format.name) == (height, width, "gbrp"):
            planar = frame
        else:
            # Planes first: swscale writes them twice as fast as pixels of three bytes. One thread: for small frames its pool costs more
            # than the work.
            planar = self._reformat.reformat(frame, width, height, "gbrp", interpolation=self._filter, threads=1)
        for channel, number in enumerate(_RED_GREEN_BLUE):
            plane = planar.planes[number]
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)  # pyright: ignore[reportArgumentType]
            pixels = np.rot90(lines[:height, :width], -self._turns)
            out[..., channel] = (pixels[:, ::-1] if self._mirrored else pixels)[self._crop]
        self._last = (frame, out)
        return out


class FrameBuffer:
    """Pictures in one array, allocated for the header's number of frames and grown if there are more."""

    def __init__(self, expected: int, most: int, named: str) -> None:
        self.count, self._expected, self._most, self._named = 0, expected, most, named
        self._room: UInt8[np.ndarray, "room H W 3"] | None = None

    def add(self, frame: VideoFrame, convert: Converter) -> None:
        picture = int(np.prod(convert.shape))
        if (self.count + 1) * picture > self._most:
            raise too_large(self._named, self._most)
        if self._room is None:
            self._room = np.empty((min(self._expected, self._most // picture), *convert.shape), np.uint8)
        elif self.count == len(self._room):
            self._room = np.concatenate([self._room, np.empty((self.count // 2 + 1, *convert.shape), np.uint8)])
        convert(frame, self._room[self.count])
        self.count += 1

    def stacked(self) -> UInt8[np.ndarray, "T H W 3"]:
        assert self._room is not None
        # A view keeps the unused rest allocated; pages never written take no memory, so only a large rest is worth a copy.
        return self._room[: self.count]
