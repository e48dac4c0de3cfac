"""Copies a video's stream into an mp4 of its own without decoding, so without loss."""

from __future__ import annotations

import io
from dataclasses import replace

import av
import numpy as np
from jaxtyping import UInt8

from sora.video.decoding.pyav import PyAVReader
from sora.video.demuxing.containers import opened
from sora.video.demuxing.timeline import walked
from sora.video.reader import Limits, Source, VideoInfo

CODECS = ("h264", "hevc", "vp9")  # codecs that all our readers decode and an mp4 can hold
FORMATS = ("yuv420p", "yuvj420p")
_UNEVEN = 1e-3  # seconds of error in frames' times: containers round them to milliseconds


def may_be_copied(info: VideoInfo) -> bool:
    """Whether a file's stream, by its facts with a timeline, shows its pictures as they are stored, at an even rate."""
    assert info.timeline is not None
    times = info.timeline.times
    even = bool(np.abs(times - times[0] - np.arange(len(times)) / info.fps).max() <= _UNEVEN)
    stored = not (info.rotation or info.mirrored or info.pixel_aspect != 1 or info.odd or info.lacks)
    return even and stored and info.codec in CODECS and info.pixel_format in FORMATS


def stream_copy(source: Source, frames: UInt8[np.ndarray, "T H W 3"], *, limits: Limits, name: str | None = None) -> bytes | None:
    """An mp4 with the packets of a file's video stream alone: no sound, no metadata.

    frames: all frames that the file shows. Returns None if the copy would show other frames, or if some reader could not read it: packets
    that an edit list hides, or groups of pictures that refer to earlier ones.
    """
    file = io.BytesIO()
    try:
        with opened(source, name, limits) as (container, video, _):
            with av.open(file, "w", format="mp4", container_options={"fflags": "+bitexact"}) as copy:
                stream = copy.add_stream_from_template(video)
                stream.metadata.clear()
                for packet in container.demux(video):
                    if packet.size:
                        packet.stream = stream
                        copy.mux(packet)
        content = file.getvalue()
        limits = replace(limits, bytes=max(limits.bytes, 2 * frames.nbytes))
        with opened(content, name, limits) as (container, video, info):
            walk = walked(container, video, info, limits)
        found = PyAVReader(limits=limits).read(content, name=name)
    except (ValueError, av.FFmpegError):
        return None
    same = found.report.clean and np.array_equal(found.frames, frames)
    return content if same and not walk.hidden and not walk.open else None
