"""Encodes frames to mp4 files: H.264, lossless or of high quality, in a form that every decoder reads alike."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from sora.system.files import whole_file

_BT709 = 1
_MOST_RATE = 1000.0


def encode(frames: UInt8[np.ndarray, "T H W 3"], fps: float, *, lossless: bool) -> bytes:
    """An mp4 of H.264: lossless RGB, or 4:2:0 of high quality (crf 18), which takes even sizes only.

    The bytes depend on the arguments alone. Closed groups of at most two seconds, constant rate, no B-frames (so no edit list).
    """
    frames = np.ascontiguousarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames of shape {frames.shape} and type {frames.dtype} are no video; give uint8 (T, H, W, 3)")
    _, height, width, _ = frames.shape
    return encode_each(frames, fps, size=(height, width), lossless=lossless)


def encode_each(frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float, *, size: tuple[int, int], lossless: bool) -> bytes:
    """`encode` for frames of (H, W) `size` that come one after another, so that only one is in memory."""
    if not 0 < fps <= _MOST_RATE:
        raise ValueError(f"{fps} frames a second is no frame rate; give one above 0 and up to {_MOST_RATE:g}")
    height, width = size
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"frames of {width}x{height} do not fit 4:2:0 video; crop to even sizes or write with lossless=True")
    options = {
        "preset": "faster" if lossless else "medium",
        "bf": "0",
        "g": str(max(1, round(2 * fps))),
        "keyint_min": "1",
        "flags": "+cgop+bitexact",
    }
    # No mbtree: with it x264 gave other bytes for equal frames once in a hundred times, depending on stale memory; never without.
    options |= {"qp": "0"} if lossless else {"crf": "18", "mbtree": "0"}
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        video = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate, options=options)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = width, height, "rgb24" if lossless else "yuv420p"
        context = video.codec_context
        context.thread_count, context.time_base = 1, 1 / rate
        if not lossless:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
        convert = _plain if lossless else _Subsampled(height, width)
        for number, picture in enumerate(frames):
            frame = convert(np.ascontiguousarray(picture))
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return file.getvalue()


def write(path: Path | str, frames: UInt8[np.ndarray, "T H W 3"], fps: float, *, lossless: bool) -> None:
    """Write an mp4 of `encode`, whole or not at all."""
    content = encode(frames, fps, lossless=lossless)
    with whole_file(Path(path)) as staging:
        staging.write_bytes(content)


def _plain(picture: UInt8[np.ndarray, "H W 3"]) -> VideoFrame:
    return VideoFrame.from_ndarray(picture, format="rgb24")


class _Subsampled:
    """Converts RGB to 4:2:0 in BT.709, as the stream is tagged."""

    def __init__(self, height: int, width: int) -> None:
        self._reformat, self._size = VideoReformatter(), (width, height)
        self._filter = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"]) -> VideoFrame:
        return self._reformat.reformat(
            _plain(picture),
            *self._size,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=self._filter,
            threads=1,
        )
