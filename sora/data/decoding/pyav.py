"""The default reader: PyAV, which brings its own FFmpeg, knows every codec, tells corrupt frames and saves what a damaged file still gives.

Files are opened as byte streams with the demuxer that their first bytes name: FFmpeg is never given a path, so a playlist or a
reference inside a file opens nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from math import ceil
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from sora.data.decoding import pictures
from sora.data.decoding.containers import opened, refused, upright, walked
from sora.data.decoding.reader import (
    HOLE,
    LAST_FOR,
    Limits,
    Reading,
    ReadReport,
    Source,
    VideoInfo,
    check_rate,
    check_room,
    covering,
    middle,
    named,
    too_large,
)

_SEEK_ABOVE = 1.0  # seconds: decoding up to a nearer start costs less than seeking
_SKIPS = ("h264", "hevc")  # decoders that leave out just the frames they are told to (dav1d leaves out others too)
_AHEAD = 24  # packets that are looked ahead; no codec shows a frame more than 16 after it is decoded
_RED_GREEN_BLUE = (2, 0, 1)  # where their planes stand in a frame of "gbrp"


class Shown(NamedTuple):
    """One frame of `stream`. time: its own, in seconds from the video's start. good: not corrupt, far from its time or after a loss."""

    pixels: UInt8[np.ndarray, "H W 3"]
    time: float
    good: bool


@dataclass(frozen=True, kw_only=True)
class PyAVReader:
    """A `VideoReader` in this process. A crash of the decoder is a crash of the process: `Guarded` runs it in another."""

    limits: Limits

    def identity(self) -> str:
        versions = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
        libraries = " ".join(f"{name} {version}" for name, version in versions.items())
        return f"pyav {av.__version__} {libraries} {pictures.identity()}"

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """See `VideoReader`. One frame is decoded, after the limits are checked: it tells the rotation."""
        if pictures.is_picture(source):
            return pictures.probe(source, name=name, timeline=timeline, limits=self.limits)
        with opened(source, name, self.limits) as (container, video, info):
            frame = next(_packets(container, video, ReadReport(), self.limits), None)
            if frame is None:
                raise ValueError(f"{named(source, name)} has no frame that decodes")
            info = upright(info, frame, video)
        if not timeline:
            return info
        with opened(source, name, self.limits) as (container, video, _):
            times = walked(container, video, info, self.limits).timeline
        return replace(info, timeline=times, frames=len(times.times))

    def read(
        self,
        source: Source,
        *,
        start: float = 0.0,
        frames: int | None = None,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> Reading:
        """See `VideoReader`."""
        told = named(source, name)
        shown = stream(source, start=start, fps=fps, size=size, name=name, limits=self.limits)
        try:
            room = check_room(shown.info, start=start, frames=frames, fps=fps, size=size, most=self.limits.bytes, named=told)
            pictures = _Pictures(max(room, 1), self.limits.bytes, told)
            for frame, convert, *_ in shown.undecided():
                pictures.add(frame, convert)
                if pictures.count == frames:
                    break
        finally:
            shown.close()
        report = shown.report
        if not pictures.count:
            raise ValueError(f"{told} has no frame that decodes from {start:g} s on ({report})")
        if frames is not None:
            report.missing = frames - pictures.count
        return Reading(pictures.stacked(), shown.fps, report)


class stream:
    """Iterate over a video's frames as `Shown`, one at a time, as `PyAVReader.read` does; `report` is kept up to date.

    `fps` is the rate of what comes out.
    """

    def __init__(
        self,
        source: Source,
        *,
        start: float = 0.0,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        limits: Limits,
    ):
        self.report = ReadReport()
        self._name = named(source, name)
        self._opened = (pictures.opened if pictures.is_picture(source) else opened)(source, name, limits)
        container, video, self.info = self._opened.__enter__()
        self.fps = fps or self.info.fps
        try:
            check_rate(fps, self.info, self._name)
            self._frames = self._generate(container, video, start, fps, size, limits)
        except BaseException:
            self._opened.__exit__(None, None, None)
            raise

    def __iter__(self) -> Iterator[Shown]:
        return self

    def __next__(self) -> Shown:
        frame, convert, time, good = next(self.undecided())
        try:
            with refused(self._name):
                return Shown(convert(frame), time, good)
        except BaseException:
            self.close()
            raise

    def undecided(self) -> Iterator[tuple[VideoFrame, _Converter, float, bool]]:
        """The frames before their conversion to RGB, what converts them, their times, and whether they are good."""
        while True:
            try:
                with refused(self._name):
                    found = next(self._frames, None)
            except BaseException:
                self.close()
                raise
            if found is None:
                self.close()
                return
            yield found

    def close(self) -> None:
        """Let the file go; also done at the end of the iteration."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _generate(
        self,
        container: InputContainer | pictures.Picture,
        video: VideoStream | None,
        start: float,
        fps: float | None,
        size: tuple[int, int] | None,
        limits: Limits,
    ) -> Iterator[tuple[VideoFrame, _Converter, float, bool]]:
        if isinstance(container, pictures.Picture):
            timed = pictures.shown(container, self._name, self.report)
        else:
            assert video is not None
            timed = _decoded(container, video, self.info, start, fps, self.report, limits)
        earliest = next(timed, None)
        if earliest is None:
            return
        if video is not None:
            self.info = upright(self.info, earliest[1], video)
        timed = chain([earliest], timed)
        convert, step = _Converter(self.info, size), 1 / self.info.fps
        if fps is None:
            asked = ((time, (time, frame)) for time, frame in timed if time >= start - step / 2)
        else:
            asked = _nearest(timed, start, fps, step * LAST_FOR)
        errors = 0
        for target, (time, frame) in asked:
            late = abs(time - target) > 1.5 * step + HOLE
            good = not (frame.is_corrupt or late) and self.report.errors == errors
            errors = self.report.errors
            self.report.corrupt += frame.is_corrupt
            self.report.late += late
            yield frame, convert, time, good


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


def _decoded(
    container: InputContainer, video: VideoStream, info: VideoInfo, start: float, fps: float | None, report: ReadReport, limits: Limits
) -> Iterator[Timed]:
    """Frames with their times in seconds from the video's start; a packet that the decoder refuses is counted and passed over."""
    base = float(video.time_base or Fraction(1, 1000))
    origin = video.start_time or 0
    sought = start > _SEEK_ABOVE and _seek(container, video, int(start / base) + origin)
    wanted = _Wanted(start, fps, base, origin) if fps is not None and fps < 0.75 * info.fps and info.codec in _SKIPS else None
    first, count = True, 0
    while True:
        again = False
        for frame in _packets(container, video, report, limits, wanted):
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


def _packets(
    container: InputContainer, video: VideoStream, report: ReadReport, limits: Limits, wanted: _Wanted | None = None
) -> Iterator[VideoFrame]:
    packets = _demuxed(container, video, report)
    for packet in packets if wanted is None else wanted.marked(packets, video):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            report.errors += 1
            continue
        for frame in frames:
            report.decoded += 1
            if report.decoded > limits.frames:
                raise ValueError(f"more than {limits.frames} frames decode, whatever the header says; raise limits.frames")
            yield frame


def _demuxed(container: InputContainer, video: VideoStream, report: ReadReport) -> Iterator[Packet]:
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:  # the container breaks off: what was decoded so far stays good
            report.errors += 1
            return
        if packet is None:
            return
        yield packet


class _Wanted:
    """Tells the decoder which packets to leave out at a low rate: frames that no other one refers to, and that are nearest to no target.

    Another frame is *known* to be nearer, so a look ahead that is too short costs time and never changes what is read.
    """

    def __init__(self, start: float, fps: float, base: float, origin: int):
        self._start, self._fps, self._base, self._origin = start, fps, base, origin

    def marked(self, packets: Iterator[Packet], video: VideoStream) -> Iterator[Packet]:
        context, ahead = video.codec_context, deque[Packet]()
        seen = deque[float](maxlen=2 * _AHEAD)  # the times behind and ahead
        for packet in chain(packets, [None] * _AHEAD):
            if packet is not None:
                ahead.append(packet)
                if packet.pts is not None:
                    seen.append(self._time(packet.pts))
            if ahead and (packet is None or len(ahead) > _AHEAD):
                current = ahead.popleft()
                context.skip_frame = "DEFAULT" if current.pts is None or self._needed(self._time(current.pts), seen) else "NONREF"
                yield current
        context.skip_frame = "DEFAULT"

    def _time(self, pts: int) -> float:
        return (pts - self._origin) * self._base

    def _needed(self, time: float, seen: deque[float]) -> bool:
        """Whether a frame at `time` may be the nearest to some target, as far as is known."""
        before = max((other for other in seen if other < time), default=time - 1)
        after = min((other for other in seen if other > time), default=time + 1)
        first = ceil(((before + time) / 2 - self._start) * self._fps - 1e-6)
        return max(first, 0) <= ((time + after) / 2 - self._start) * self._fps + 1e-6


class _Converter:
    """Decoded frames to upright RGB of one size: swscale turns colours and shrinks in one go, which is cheaper than either order of two."""

    def __init__(self, info: VideoInfo, size: tuple[int, int] | None):
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


class _Pictures:
    """Pictures in one array, made for as many as the header promises and grown where there are more."""

    def __init__(self, expected: int, most: int, named: str):
        self.count, self._expected, self._most, self._named = 0, expected, most, named
        self._room: UInt8[np.ndarray, "room H W 3"] | None = None

    def add(self, frame: VideoFrame, convert: _Converter) -> None:
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
        # A view keeps what was not needed; pages never written take no memory, so only a large rest is worth a copy.
        return self._room[: self.count]
