"""Video files to frames and back, by time stamps, through PyAV.

Frames are uint8 (T, H, W, 3) RGB, upright (the rotation in the file's metadata applied) and with square pixels. Files are
opened as byte streams with the demuxer that their first bytes name: FFmpeg is never given a path, so a playlist or a
reference inside a file opens nothing. Whatever a file does to the decoder comes out as a `ValueError` that names the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from sora.data.mp4 import encode, write

__all__ = ["LIMITS", "Limits", "ReadReport", "Reading", "Shown", "VideoInfo", "covering", "encode", "probe", "read", "stream", "write"]

Source = Path | str | bytes
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
_HOLE = 0.25  # seconds: files of variable rate leave out frames in which nothing moves; a wider gap is a loss
_SEEK_ABOVE = 1.0  # seconds: decoding up to a nearer start costs less than seeking


@dataclass(frozen=True)
class Limits:
    """What a file may ask for, judged by its header before anything is decoded."""

    pixels: int = 4096 * 2304  # of one frame
    seconds: float = 6 * 3600.0
    rate: float = 1000.0  # frames a second
    bytes: int = 2 << 30  # of the frames of one read


LIMITS = Limits()


@dataclass(frozen=True)
class VideoInfo:
    """What the header says. height and width as shown: rotated, with square pixels. rotation: degrees clockwise that were applied.

    fps is the average rate; frames is the header's count, or duration x fps where it has none.
    """

    frames: int
    fps: float
    height: int
    width: int
    duration: float
    rotation: int
    codec: str
    pixel_format: str


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
    with _opened(source, name, limits) as (container, video, info):
        for frame in _packets(container, video, ReadReport()):
            return _upright(info, frame)
    raise ValueError(f"{_named(source, name)} has no frame that decodes")


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
            raise ValueError(f"{_named(source, name)} decodes to more than {limits.bytes} bytes; read fewer frames or a smaller size")
        if len(pictures) == frames:
            break
    rate = fps or shown.fps
    shown.close()
    if not pictures:
        raise ValueError(f"{_named(source, name)} has no frame that decodes from {start:g} s on ({report})")
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
        self._opened = _opened(source, name, limits)
        container, video, self.info = self._opened.__enter__()
        self.fps = fps or self.info.fps
        try:
            # A thousandth: 29.97 is asked of 30000/1001.
            if fps is not None and fps > self.info.fps * 1.001:
                raise ValueError(f"{_named(source, name)} has {self.info.fps:.6g} frames a second, {fps:g} were asked for; lower fps")
            self._frames = self._generate(container, video, start, fps, size)
        except BaseException:
            self._opened.__exit__(None, None, None)
            raise
        self._name = _named(source, name)

    def __iter__(self) -> Iterator[Shown]:
        return self

    def __next__(self) -> Shown:
        try:
            with _refused(self._name):
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
        self.info = _upright(self.info, earliest[1])
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
    except av.FFmpegError:
        return False
    return True


def _packets(container: InputContainer, video: VideoStream, report: ReadReport) -> Iterator[VideoFrame]:
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the container breaks off: what was decoded so far stays good
            report.errors += 1
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError:
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


@contextmanager
def _opened(source: Source, name: str | None, limits: Limits) -> Iterator[tuple[InputContainer, VideoStream, VideoInfo]]:
    named = _named(source, name)
    with _refused(named):
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
        with file:
            demuxer = _demuxer(file.read(189), named)
            file.seek(0)
            with av.open(file, format=demuxer, metadata_errors="replace") as container:
                video = _video_stream(container, named)
                video.thread_type = "NONE"
                video.codec_context.thread_count = 1
                yield container, video, _info(container, video, named, limits)


@contextmanager
def _refused(named: str) -> Iterator[None]:
    """Whatever a hostile or damaged file makes of the decoder becomes a `ValueError` that names it."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"{named} does not decode: {error.strerror or error}") from None
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror or error}") from None
    except (IndexError, EOFError, MemoryError, OverflowError, ZeroDivisionError, UnicodeError) as error:
        raise ValueError(f"{named} does not decode: {type(error).__name__} {error}") from None


def _named(source: Source, name: str | None) -> str:
    return name or (f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source))


def _demuxer(head: bytes, named: str) -> str:
    """FFmpeg's name of the container, from its first bytes: only containers of pictures are let in, no playlists."""
    if not head:
        raise ValueError(f"{named} is empty")
    known: tuple[tuple[bool, str], ...] = (
        (head[4:8] in _MP4_BOXES, "mov"),
        (head[:4] == b"\x1a\x45\xdf\xa3", "matroska"),
        (head[:4] == b"RIFF" and head[8:12] == b"AVI ", "avi"),
        (head[:4] == b"OggS", "ogg"),
        (head[:3] == b"FLV", "flv"),
        (head[:4] == b"GIF8", "gif"),
        (head[:4] == b"\x00\x00\x01\xba", "mpeg"),
        (head[:1] == b"\x47" and head[188:189] == b"\x47", "mpegts"),
    )
    for fits, demuxer in known:
        if fits:
            return demuxer
    raise ValueError(f"{named} is no video that is known here (mp4, mov, webm, mkv, avi, ogv, flv, gif, mpg or ts) by its first bytes")


def _video_stream(container: InputContainer, named: str) -> VideoStream:
    videos = [one for one in container.streams.video if not one.disposition & one.disposition.attached_pic]
    if not videos:
        raise ValueError(f"{named} holds no video stream")
    if videos[0].codec_context is None:  # PyAV's types do not say that it may be
        raise ValueError(f"{named} is coded in a way that no decoder here knows")
    return videos[0]


def _info(container: InputContainer, video: VideoStream, named: str, limits: Limits) -> VideoInfo:
    context = video.codec_context
    rate = _rate(video)
    if video.duration and video.time_base:
        duration = float(video.duration * video.time_base)
    elif container.duration:
        duration = container.duration / av.time_base
    else:
        duration = float(video.frames / rate) if rate else 0.0
    if not rate or not context.width or not context.height:
        raise ValueError(f"{named} says neither its size nor its rate ({context.width}x{context.height} at {rate} frames a second)")
    pixels = context.width * context.height
    height, width = context.height, max(1, round(context.width * _pixel_aspect(video)))
    for what, value, most in (
        ("pixels a frame", max(pixels, height * width), limits.pixels),
        ("seconds", duration, limits.seconds),
        ("frames a second", float(rate), limits.rate),
    ):
        if value > most:
            raise ValueError(f"{named} has {value:g} {what} by its header, the limit is {most:g}")
    frames = video.frames or round(duration * rate)
    return VideoInfo(frames, float(rate), height, width, duration, 0, context.codec.name, context.pix_fmt or "")


def _rate(video: VideoStream) -> Fraction:
    """Frames a second on average; FFmpeg's guess instead where they differ by no more than how long the last frame is taken to last."""
    average, guess = video.average_rate or Fraction(0), video.guessed_rate or Fraction(0)
    if not average:
        return guess
    frames = video.frames or 1000
    return guess if guess and abs(guess / average - 1) * frames < 1.5 else average


def _upright(info: VideoInfo, frame: VideoFrame) -> VideoInfo:
    """The header's facts as the picture is shown: PyAV tells the rotation with the frames, counterclockwise."""
    rotation = round(-frame.rotation / 90) * 90 % 360
    height, width = (info.width, info.height) if rotation % 180 else (info.height, info.width)
    return replace(info, rotation=rotation, height=height, width=width)


def _pixel_aspect(video: VideoStream) -> float:
    aspect = float(video.sample_aspect_ratio or 1)
    return aspect if 0.1 <= aspect <= 10 else 1.0
