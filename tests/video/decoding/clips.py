"""One clip of each kind that the wild holds, made here: what every reader is tried on. Frames tell their number, corners their place."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av
import numpy as np

from tests.data.making import counting

RATE = 25
UNEVEN = (0.031, 0.053, 0.037, 0.029, 0.047, 0.043)  # seconds: of no rate in common, as recordings of a browser have them
X265 = {"x265-params": "log-level=none"}


class Made(NamedTuple):
    """A file, and what must come out of it: frame numbers (`making.numbers`), and times in seconds from the first one."""

    content: bytes
    numbers: list[int]
    times: list[float]
    height: int
    width: int


def file_of(
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    times: list[float] | None = None,
    base: Fraction = Fraction(1, 1000),
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
    matrix: int | None = None,
    whole_range: bool = False,
) -> bytes:
    """A file as others would write it. matrix: of colours, as ITU-T H.273 numbers them."""
    times = [number / RATE for number in range(len(frames))] if times is None else times
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=muxer or {}) as output:
        video = output.add_stream(codec, rate=RATE, options={"crf": "10", "g": "12"} | (options or {}))
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], pixels
        context = video.codec_context
        context.time_base, context.thread_count = base, 1
        if aspect:
            context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        if matrix:
            context.colorspace = context.color_primaries = context.color_trc = matrix
        if whole_range:
            context.color_range = 2
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if matrix or whole_range:
                frame = frame.reformat(format=pixels, dst_colorspace=matrix or 5, dst_color_range=2 if whole_range else 1)
            frame.pts, frame.time_base = round(time / base), base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return file.getvalue()


def index_first(content: bytes) -> bytes:
    """An mp4 with its index before its pictures, as for streaming; FFmpeg does that with a file on disk alone."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "a.mp4"
        with av.open(io.BytesIO(content)) as source, av.open(str(place), "w", container_options={"movflags": "faststart"}) as output:
            video = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = video
                    output.mux(packet)
        return place.read_bytes()


def _plain(count: int = 50, height: int = 64, width: int = 96, **how) -> Made:
    times = [number / RATE for number in range(count)]
    return Made(file_of(counting(count, height, width), **how), list(range(count)), times, height, width)


def _of_variable_rate(container: str = "mp4", *, steps: tuple[float, ...] = (1 / 50, 1 / 12.5, 1 / 25, 1 / 25), **how) -> Made:
    times = np.cumsum([0, *np.tile(steps, 48 // len(steps))]).round(3).tolist()
    content = file_of(counting(len(times), 64, 96), container=container, times=times, **how)
    return Made(content, list(range(len(times))), times, 64, 96)


def piped(content: bytes, container: str) -> bytes:
    """A copy written to where nobody can go back, and so without how long it is."""

    class Pipe:
        def __init__(self) -> None:
            self.content = b""

        def write(self, more: bytes) -> int:
            self.content += bytes(more)
            return len(more)

    pipe = Pipe()
    with av.open(io.BytesIO(content)) as source, av.open(pipe, "w", format=container) as output:
        video = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                output.mux(packet)
    return pipe.content


def _with_an_edit_list() -> Made:
    """Ten frames lie before the time zero at which showing begins, as a copy without re-encoding leaves them."""
    times = [(number - 10) / RATE for number in range(50)]
    content = file_of(counting(50, 64, 96), times=times, options={"bf": "2", "g": "50"}, muxer={"use_editlist": "1"})
    return Made(content, list(range(10, 50)), [number / RATE for number in range(40)], 64, 96)


def _that_starts_late() -> Made:
    times = [number / RATE for number in range(50)]
    return Made(file_of(counting(50, 64, 96), container="matroska", times=[5 + time for time in times]), list(range(50)), times, 64, 96)


GOOD = {
    "h264": lambda: _plain(options={"bf": "0"}),
    "h264 with b-frames": lambda: _plain(options={"bf": "3", "g": "8"}),
    "h265": lambda: _plain(codec="libx265", options=X265),
    "h264 with open groups": lambda: _plain(options={"bf": "3", "g": "10", "x264-params": "open-gop=1"}),
    "h265 with closed groups": lambda: _plain(codec="libx265", options={"x265-params": "log-level=none:open-gop=0"}),
    "vp9": lambda: _plain(codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
    "av1": lambda: _plain(20, codec="libsvtav1", options={"preset": "12"}),
    "odd sizes": lambda: _plain(20, 67, 101, pixels="yuv444p"),
    "variable rate": _of_variable_rate,
    "variable rate in ts": lambda: _of_variable_rate("mpegts", steps=UNEVEN, base=Fraction(1, 90000)),
    "variable rate in flv": lambda: _of_variable_rate("flv"),
    "variable rate in mkv through a pipe": lambda: (lambda made: made._replace(content=piped(made.content, "matroska")))(
        _of_variable_rate(steps=UNEVEN)
    ),
    "edit list": _with_an_edit_list,
    "late start": _that_starts_late,
    "fragmented": lambda: _plain(muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "index at the front": lambda: (lambda made: made._replace(content=index_first(made.content)))(_plain()),
    "one frame": lambda: _plain(1),
    "ten bits": lambda: _plain(20, codec="libx265", pixels="yuv420p10le", options=X265),
    "transport stream": lambda: _plain(container="mpegts", base=Fraction(1, 90000), options={"bf": "0"}),
    "avi": lambda: _plain(codec="mpeg4", container="avi", base=Fraction(1, RATE), options={"qmin": "1", "qmax": "2"}),
}


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """Three frames with a red block of 16 pixels at the top left."""
    frames = np.full((3, height, width, 3), 40, np.uint8)
    frames[:, :16, :16] = (220, 30, 30)
    return frames


def displayed(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 with another matrix (a, b, c, d) in the header of its track (ISO/IEC 14496-12, 8.3.2, version 0)."""
    at = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    return content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :]


def audio() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        _sound(output, output.add_stream("aac", rate=16000))
    return file.getvalue()


def covered() -> bytes:
    """Music with a picture on its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound, cover = output.add_stream("aac", rate=16000), output.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1)
        output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
        _sound(output, sound)
    return file.getvalue()


def _sound(output, stream) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _whole() -> bytes:
    return index_first(file_of(counting(50, 64, 96), options={"bf": "0"}))


def _zeroed() -> bytes:
    content = bytearray(_whole())
    begin = content.index(b"mdat") + 4
    length = len(content) - begin
    content[begin + length // 3 : begin + 2 * length // 3] = bytes(2 * length // 3 - length // 3)
    return bytes(content)


def _flipped() -> bytes:
    content, rng = bytearray(_whole()), np.random.default_rng(3)
    begin = content.index(b"mdat") + 4
    for place in rng.integers(begin + 200, len(content), size=60):
        content[place] ^= 1 << int(rng.integers(8))
    return bytes(content)


HOPELESS = {
    "empty": lambda: b"",
    "html": lambda: b"<!doctype html><html><body>404</body></html>",
    "playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "random": lambda: b"\x00\x00\x00\x18ftypisom" + np.random.default_rng(0).bytes(5000),
    "audio only": audio,
    "cover art": covered,
    "without its index": lambda: _plain().content[:-1500],
}
DAMAGED = {
    "cut short": lambda: _whole()[: int(0.6 * len(_whole()))],
    "cut short webm": lambda: (lambda whole: whole[: int(0.6 * len(whole))])(
        file_of(counting(50, 64, 96), codec="libvpx-vp9", container="webm", options={"cpu-used": "8"})
    ),
    "zeroed": _zeroed,
    "flipped": _flipped,
}
GOOD, DAMAGED = ({kind: cache(make) for kind, make in kinds.items()} for kinds in (GOOD, DAMAGED))  # once for all modules of tests


def of_8192_by_4320() -> bytes:
    """Two frames of one colour: a few kB that would take hundreds of MB."""
    return file_of(np.zeros((2, 4320, 8192, 3), np.uint8), options={"preset": "ultrafast"})


def of_20000_frames() -> bytes:
    return file_of(np.zeros((1, 32, 32, 3), np.uint8).repeat(20000, 0), options={"preset": "ultrafast", "g": "250"})


def of_8192_by_4320_that_says_64() -> bytes:
    """The same with 64 x 64 in every header of the container: only the coded pictures tell."""
    content = of_8192_by_4320()
    for bits in (16, 32):  # the sample's description; the track's header, in 16.16
        large, small = ((width << bits - 16).to_bytes(bits // 8, "big") for width in (8192, 64))
        high, low = ((height << bits - 16).to_bytes(bits // 8, "big") for height in (4320, 64))
        assert large + high in content
        content = content.replace(large + high, small + low)
    return content
