"""Video files to frames and back, by time stamps, through PyAV.

Frames are uint8 (T, H, W, 3) RGB, upright (the rotation in the file's metadata applied) and with square pixels. Files are
opened as byte streams with the demuxer that their first bytes name: FFmpeg is never given a path, so a playlist or a
reference inside a file opens nothing. Whatever a file does to the decoder comes out as a `ValueError` that names the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from sora.data.containers import LIMITS, Limits, Source, VideoInfo, named, opened, refused, upright
from sora.data.mp4 import encode, write

__all__ = ["LIMITS", "Limits", "ReadReport", "Reading", "Shown", "VideoInfo", "covering", "encode", "probe", "read", "stream", "write"]

_HOLE = 0.25  # seconds: files of variable rate leave out frames in which nothing moves; a wider gap is a loss
_SEEK_ABOVE = 1.0  # seconds: decoding up to a nearer start costs less than seeking


@dataclass
class ReadReport:
    """What went wrong in a read: packets refused by the decoder, frames it marked corrupt, frames far from their time, frames missing."""

    decoded: int = 0
    errors: int = 0
    corrupt: int = 0
    late: int = 0
    missing: int = 0

    @property
    def clean(self) -> bool:
        return not (self.errors or self.corrupt or self.late or self.missing)

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("errors", "corrupt", "late", "missing") if getattr(self, name)}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "clean"


class Reading(NamedTuple):
    """Frames of one read, at a constant rate (or the file's own), and how well it went."""

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float
    report: ReadReport


class Shown(NamedTuple):
    """One frame of `stream`. time: its own, in seconds from the video's start. good: not corrupt, far from its time or after a loss."""

    pixels: UInt8[np.ndarray, "H W 3"]
    time: float
    good: bool


def probe(source: Source, *, name: str | None = None, limits: Limits = LIMITS) -> VideoInfo:
    """The header of a video file or of its bytes. One frame is decoded, after the limits are checked: it tells the rotation."""
    with opened(source, name, limits) as (container, video, info):
        for frame in _packets(container, video, ReadReport()):
            return upright(info, frame)
    raise ValueError(f"{named(source, name)} has no frame that decodes")


def read(
    source: Source,
    *,
    start: float = 0.0,
    frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    limits: Limits = LIMITS,
) -> Reading:
    """Frames of a video from `start` seconds: `frames` of them (None: to the end) at `fps` (None: every frame of the file).

    At `fps`, each frame is the one nearest in time. size: (H, W) to fill, aspect kept, what stands over cut off evenly. Fewer frames
    than asked for, and damage, are told in the report; no frame at all, and a rate above the file's, are a `ValueError`.
    """
    report = ReadReport()
    pictures: list[np.ndarray] = []
    shown = stream(source, start=start, fps=fps, size=size, name=name, limits=limits, report=report)
    room = 0
    for picture in shown:
        pictures.append(picture.pixels)
        room += picture.pixels.nbytes
        if room > limits.bytes:
            raise ValueError(f"{named(source, name)} decodes to more than {limits.bytes} bytes; read fewer frames or a smaller size")
        if len(pictures) == frames:
            break
    rate = fps or shown.fps
    shown.close()
    if not pictures:
        raise ValueError(f"{named(source, name)} has no frame that decodes from {start:g} s on ({report})")
    if frames is not None:
        report.missing = frames - len(pictures)
    return Reading(np.stack(pictures), rate, report)


class stream:
    """Iterate over a video's frames as `Shown`, one at a time, as `read` does; `report` is kept up to date.

    `fps` afterwards is the rate of what comes out.
    """

    def __init__(
        self,
        source: Source,
        *,
        start: float = 0.0,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        limits: Limits = LIMITS,
        report: ReadReport | None = None,
    ):
        self.report = report or ReadReport()
        self._opened = opened(source, name, limits)
        container, video, self.info = self._opened.__enter__()
        self.fps = fps or self.info.fps
        try:
            # A thousandth: 29.97 is asked of 30000/1001.
            if fps is not None and fps > self.info.fps * 1.001:
                raise ValueError(f"{named(source, name)} has {self.info.fps:.6g} frames a second, {fps:g} were asked for; lower fps")
            self._frames = self._generate(container, video, start, fps, size)
        except BaseException:
            self._opened.__exit__(None, None, None)
            raise
        self._name = named(source, name)

    def __iter__(self) -> Iterator[Shown]:
        return self

    def __next__(self) -> Shown:
        try:
            with refused(self._name):
                return next(self._frames)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the file go; also done at the end of the iteration."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _generate(
        self, container: InputContainer, video: VideoStream, start: float, fps: float | None, size: tuple[int, int] | None
    ) -> Iterator[Shown]:
        timed = _decoded(container, video, self.info, start, self.report)
        earliest = next(timed, None)
        if earliest is None:
            return
        self.info = upright(self.info, earliest[1])
        timed = chain([earliest], timed)
        convert, step = _Converter(self.info, size), 1 / self.info.fps
        if fps is None:
            asked = ((time, (time, frame)) for time, frame in timed if time >= start - step / 2)
        else:
            asked = _nearest(timed, start, fps, step * 0.51)  # half a frame, and what time stamps are rounded by
        errors = 0
        for target, (time, frame) in asked:
            late = abs(time - target) > 1.5 * step + _HOLE
            good = not (frame.is_corrupt or late) and self.report.errors == errors
            errors = self.report.errors
            self.report.corrupt += frame.is_corrupt
            self.report.late += late
            yield Shown(convert(frame), time, good)


Timed = tuple[float, VideoFrame]


def _nearest(frames: Iterator[Timed], start: float, fps: float, last_for: float) -> Iterator[tuple[float, Timed]]:
    """(target time, the frame nearest to it) for targets start, start + 1/fps, ...; the last frame serves `last_for` seconds."""
    number, previous = 0, None
    for now in frames:
        while previous is not None and (target := start + number / fps) <= (previous[0] + now[0]) / 2 + 1e-9:
            yield target, previous
            number += 1
        previous = now
    while previous is not None and (target := start + number / fps) <= previous[0] + last_for:
        yield target, previous
        number += 1


def _decoded(container: InputContainer, video: VideoStream, info: VideoInfo, start: float, report: ReadReport) -> Iterator[Timed]:
    """Frames with their times in seconds from the video's start; a packet that the decoder refuses is counted and passed over."""
    base = float(video.time_base or Fraction(1, 1000))
    origin = video.start_time or 0
    sought = start > _SEEK_ABOVE and _seek(container, video, int(start / base) + origin)
    first, count = True, 0
    while True:
        again = False
        for frame in _packets(container, video, report):
            time = (frame.pts - origin) * base if frame.pts is not None else count / info.fps
            count += 1
            if first and sought and time > start + 0.5 / info.fps:
                again = True  # the seek landed behind its target (files without an index do): decode from the beginning
                break
            first = False
            yield time, frame
        if not again or not _seek(container, video, origin):
            return
        sought = False


def _seek(container: InputContainer, video: VideoStream, offset: int) -> bool:
    try:
        container.seek(offset, stream=video)
    except av.error.FFmpegError:
        return False
    return True


def _packets(container: InputContainer, video: VideoStream, report: ReadReport) -> Iterator[VideoFrame]:
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:  # the container breaks off: what was decoded so far stays good
            report.errors += 1
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            report.errors += 1
            continue
        for frame in frames:
            report.decoded += 1
            yield frame


class _Converter:
    """Decoded frames to upright RGB of one size."""

    def __init__(self, info: VideoInfo, size: tuple[int, int] | None):
        self._reformat = VideoReformatter()
        self._turns = info.rotation // 90
        self._crop = (slice(None), slice(None))
        height, width = covering(info.height, info.width, size) if size else (info.height, info.width)
        if size is not None:
            top, left = (height - size[0]) // 2, (width - size[1]) // 2
            self._crop = (slice(top, top + size[0]), slice(left, left + size[1]))
        self._size = (width, height) if self._turns % 2 else (height, width)
        shrinks = height < info.height and width <= info.width
        self._filter = (
            (Interpolation.AREA if shrinks else Interpolation.LANCZOS) | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        )
        self._last: tuple[VideoFrame, np.ndarray] | None = None

    def __call__(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        height, width = self._size
        if (frame.height, frame.width) != (height, width) or frame.format.name not in ("gbrp", "rgb24"):
            # One thread: for small frames swscale's thread pool costs more than the work.
            pixels = self._reformat.reformat(frame, width, height, "rgb24", interpolation=self._filter, threads=1).to_ndarray()
        else:
            pixels = frame.to_ndarray()
        if self._turns:
            pixels = np.rot90(pixels, -self._turns)
        pixels = np.ascontiguousarray(pixels[self._crop])
        self._last = (frame, pixels)
        return pixels


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) of the same aspect that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))
