"""Opens video files by their first bytes, within limits; every failure is a `ValueError` with the file's name.

Every backend opens files through here first, so that all refuse the same files and report the same facts about the others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora.video.demuxing.kinds import HEAD, READ_HERE, kind_of
from sora.video.reader import Limits, Source, VideoInfo, named

_MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}  # ITU-T H.273, table 4
_TRANSFERS = {16: "pq", 18: "hlg"}  # ITU-T H.273, table 3
_ALIKE = 0.8, 1.25  # ratios of the two rates between which the header is believed
_CLOCKED = ("matroska", "mpegts", "mpeg", "flv")  # containers whose time base does not depend on the frame rate
_COUNTED = 4096  # packets from which a rate is measured if no header has it
_BT2020 = 9  # ITU-T H.273, table 2
_RANGES = {1: "limited", 2: "full"}


Opened = tuple[InputContainer, VideoStream, VideoInfo]


@contextmanager
def opened(source: Source, name: str | None, limits: Limits) -> Iterator[Opened]:
    told = named(source, name)
    with refused(told):
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            demuxer = _demuxer(file.read(HEAD), told)
            file.seek(0)
            # FFmpeg decodes frames to learn the format: a false frame size in a header must not make it allocate them.
            bounded = {"max_pixels": str(limits.pixels)}
            # An mp4's header suffices up to the first frame; decoding one to learn the format took a tenth of a clip's time.
            looking = bounded | ({"skip_frame": "all"} if demuxer == "mov" else {})
            with av.open(file, mode="r", format=demuxer, metadata_errors="replace", options=looking) as container:
                video = _video_stream(container, told)
                video.codec_context.options = bounded
                video.thread_type = "NONE"
                video.codec_context.thread_count = 1
                rate = _counted(source, demuxer, video.index) if _unsaid(container, video) else None
                yield container, video, _info(container, video, told, limits, rate=rate)


def _unsaid(container: InputContainer, video: VideoStream) -> bool:
    """Whether no header has the frame rate: then FFmpeg guesses, for uneven times often as many frames a second as its clock has ticks."""
    steps = float((video.average_rate or 0) * (video.time_base or 0))
    return container.format.name.split(",")[0] in _CLOCKED and (not video.average_rate or steps > 0.9)


def _counted(source: Source, demuxer: str, number: int) -> Fraction | None:
    """Average frames a second over the first packets of a file; None for fewer than two packets."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        with av.open(file, mode="r", format=demuxer, metadata_errors="replace") as container:
            video, times = container.streams[number], list[int]()
            try:
                for packet in container.demux(video):
                    times += [packet.pts] if packet.pts is not None and packet.size else []
                    if len(times) == _COUNTED:
                        break
            except av.error.FFmpegError:  # the packets so far suffice
                pass
            lasted = (max(times) - min(times)) * (video.time_base or 0) if times else 0
            return Fraction(len(times) - 1) / lasted if lasted > 0 else None


@contextmanager
def refused(named: str) -> Iterator[None]:
    """Turn any error that a hostile or damaged file causes in FFmpeg into a `ValueError` with the file's name."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise ValueError(f"{named} does not decode: {error.strerror or error}") from None
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror or error}") from None
    except (IndexError, EOFError, MemoryError, OverflowError, ZeroDivisionError, UnicodeError) as error:
        raise ValueError(f"{named} does not decode: {type(error).__name__} {error}") from None


def _demuxer(head: bytes, named: str) -> str:
    """FFmpeg's name of the container, from its first bytes: only containers of pictures are allowed, no playlists."""
    kind = kind_of(head)
    if not kind.demuxer:
        raise ValueError(f"{named} is {kind.what}" + (f" by its first bytes; read here are {READ_HERE}" if head else ""))
    return kind.demuxer


def _video_stream(container: InputContainer, named: str) -> VideoStream:
    videos = [one for one in container.streams.video if not one.disposition & one.disposition.attached_pic]
    if not videos:
        raise ValueError(f"{named} holds no video stream")
    if videos[0].codec_context is None:  # possible, although PyAV's types do not say so
        raise ValueError(f"{named} is coded in a way that no decoder here knows")
    return videos[0]


def _info(container: InputContainer, video: VideoStream, named: str, limits: Limits, *, rate: Fraction | None) -> VideoInfo:
    """The facts of a video from its header. rate: frames a second, if the header has none."""
    context = video.codec_context
    rate = rate or _rate(video)
    if video.duration and video.time_base:
        duration = float(video.duration * video.time_base)
    elif container.duration:
        begun = container.start_time if container.format.name.startswith("matroska") else 0  # whose duration is the time of the end
        duration = (container.duration - (begun or 0)) / av.time_base
    else:
        duration = float(video.frames / rate) if rate else 0.0
    indexed = _rate_of_index(container, video)
    if indexed and rate and not _ALIKE[0] < rate / indexed < _ALIKE[1]:
        rate, duration = indexed, float(len(video.index_entries) / indexed)
    if not rate or not context.width or not context.height:
        raise ValueError(f"{named} says neither its size nor its rate ({context.width}x{context.height} at {rate} frames a second)")
    pixels, aspect = context.width * context.height, _pixel_aspect(video)
    height, width = context.height, max(1, round(context.width * aspect))
    frames = video.frames or round(duration * rate)
    for key, what, value, most in (
        ("pixels", "pixels a frame", max(pixels, height * width), limits.pixels),
        ("frames", "frames", frames, limits.frames),
        ("seconds", "seconds", duration, limits.seconds),
        ("rate", "frames a second", float(rate), limits.rate),
    ):
        if value > most:
            raise ValueError(f"{named} has {value:g} {what} by its header, the limit is {most:g} (limits.{key})")
    return VideoInfo(
        frames=frames,
        fps=float(rate),
        height=height,
        width=width,
        duration=duration,
        rotation=0,
        mirrored=False,
        codec=context.codec.canonical_name,
        pixel_aspect=aspect,
        pixel_format="",
        colour_matrix="unspecified",
        colour_range="unspecified",
    )


def _rate_of_index(container: InputContainer, video: VideoStream) -> Fraction | None:
    """Frames a second from an mp4's table of decoding times: its headers have a duration, and that is often wrong."""
    entries = video.index_entries
    if not container.format.name.startswith("mov") or len(entries) < 2 or not video.time_base:
        return None
    lasted = (entries[-1].timestamp - entries[0].timestamp) * video.time_base
    return (len(entries) - 1) / lasted if lasted > 0 else None


def _rate(video: VideoStream) -> Fraction:
    """Average frames a second; FFmpeg's guess if the two differ by no more than the assumed duration of the last frame explains."""
    average, guess = video.average_rate or Fraction(0), video.guessed_rate or Fraction(0)
    if not average:
        return guess
    frames = video.frames or 1000
    return guess if guess and abs(guess / average - 1) * frames < 1.5 else average


def upright(info: VideoInfo, frame: VideoFrame, video: VideoStream) -> VideoInfo:
    """The facts corrected by the first decoded frame, with which the display matrix comes."""
    (rotation, mirrored), aspect = _orientation(frame), _pixel_aspect(video)
    shape = frame.height, max(1, round(frame.width * aspect))
    height, width = reversed(shape) if rotation % 180 else shape
    context = video.codec_context
    return replace(
        info,
        rotation=rotation,
        mirrored=mirrored,
        height=height,
        width=width,
        pixel_aspect=aspect,
        pixel_format=context.pix_fmt or "",
        colour_matrix=_MATRICES.get(int(context.colorspace), "unspecified"),
        colour_range=_RANGES.get(int(context.color_range), "unspecified"),
        transfer=_TRANSFERS.get(int(context.color_trc), ""),
        wide=int(context.color_primaries) == _BT2020,
        interlaced=frame.interlaced_frame,
    )


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Degrees clockwise, to the nearest right angle, and whether the picture is mirrored left to right after that.

    From the matrix (a, b; c, d) that maps a stored pixel (x, y) to (a x + c y, b x + d y) (ISO/IEC 14496-12, 8.3.2).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # pyright: ignore[reportArgumentType]
    mirrored = a * d < b * c
    return round(math.degrees(math.atan2(b, -a if mirrored else a)) / 90) * 90 % 360, mirrored


def _pixel_aspect(video: VideoStream) -> float:
    aspect = float(video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio or 1)
    return aspect if 0.1 <= aspect <= 10 else 1.0
