"""Opening the files that hold video: by their first bytes, within limits, and with every failure a `ValueError` that names the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Source = Path | str | bytes
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")


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


@contextmanager
def opened(source: Source, name: str | None, limits: Limits) -> Iterator[tuple[InputContainer, VideoStream, VideoInfo]]:
    told = named(source, name)
    with refused(told):
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            demuxer = _demuxer(file.read(189), told)
            file.seek(0)
            with av.open(file, mode="r", format=demuxer, metadata_errors="replace") as container:
                video = _video_stream(container, told)
                video.thread_type = "NONE"
                video.codec_context.thread_count = 1
                yield container, video, _info(container, video, told, limits)


@contextmanager
def refused(named: str) -> Iterator[None]:
    """Whatever a hostile or damaged file makes of the decoder becomes a `ValueError` that names it."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise ValueError(f"{named} does not decode: {error.strerror or error}") from None
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror or error}") from None
    except (IndexError, EOFError, MemoryError, OverflowError, ZeroDivisionError, UnicodeError) as error:
        raise ValueError(f"{named} does not decode: {type(error).__name__} {error}") from None


def named(source: Source, name: str | None) -> str:
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


def upright(info: VideoInfo, frame: VideoFrame) -> VideoInfo:
    """The header's facts as the picture is shown: PyAV tells the rotation with the frames, counterclockwise."""
    rotation = round(-frame.rotation / 90) * 90 % 360
    height, width = (info.width, info.height) if rotation % 180 else (info.height, info.width)
    return replace(info, rotation=rotation, height=height, width=width)


def _pixel_aspect(video: VideoStream) -> float:
    aspect = float(video.sample_aspect_ratio or 1)
    return aspect if 0.1 <= aspect <= 10 else 1.0
