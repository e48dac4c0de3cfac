"""The decord reader, for shards that sora wrote. Its FFmpeg is of 2021 and unmaintained, so it gets only files that it reads right.

It returns wrong frames for edit lists and open groups of pictures, crashes on files that are cut short, and has no AV1, rotation or
mirroring; all these files are refused here. It does not notice flipped bits: the hashes of an index do. Run it in a `GuardedReader`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from jaxtyping import UInt8

from sora.system.terminal import counted
from sora.video.decoding.indexed import IndexedRead, by_number
from sora.video.decoding.pyav import PyAVReader
from sora.video.demuxing.seeking import INDEXED
from sora.video.reader import Limits, Reading, Source, VideoInfo

_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg2video")
_NARROWEST = 64  # pixels; decord takes some narrower frames for four-channel ones


@dataclass(frozen=True, kw_only=True)
class DecordReader:
    """A `VideoReader` that decodes and resizes with decord; PyAV reads the headers and chooses the frames."""

    limits: Limits

    def identity(self) -> str:
        try:
            import decord  # noqa: F401
        except (ImportError, OSError) as error:
            raise ValueError(
                f"reader=decord needs the package decord (x86-64 only), or choose reader=pyav; importing it fails: {error}"
            ) from None
        return f"decord {metadata.version('decord')} {PyAVReader(limits=self.limits).identity()}"

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """See `VideoReader`."""
        return PyAVReader(limits=self.limits).probe(source, name=name, timeline=timeline)

    def read(
        self,
        source: Source,
        *,
        start: float = 0.0,
        first: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> Reading:
        """See `VideoReader`; also raises `ValueError` for files that decord would read wrong."""
        given = {"start": start, "first": first, "frames": frames, "fps": fps, "size": size, "name": name}
        return by_number(_decoded, source, backend="decord", limits=self.limits, **given)


def _decoded(wanted: IndexedRead) -> tuple[int, UInt8[np.ndarray, "T H W 3"]]:
    import decord

    _refuse(wanted)
    height, width = wanted.shape
    numbers, places = np.unique(wanted.numbers, return_inverse=True)
    try:
        video = decord.VideoReader(io.BytesIO(wanted.content), ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        numbers = numbers[numbers < len(video)]  # decord may count fewer frames; the caller compares its count and refuses
        # Decode the first frame: some codec parameters are in the first packet only.
        pictures = video.get_batch([0, *numbers.tolist()]).asnumpy()[1:]
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(f"{wanted.named} does not decode by decord: {str(error).strip().splitlines()[-1]}; choose reader=pyav") from None
    return len(video), pictures if len(places) == len(numbers) else pictures[places]


def _refuse(wanted: IndexedRead) -> None:
    info = wanted.info
    for wrong, why in (
        (info.codec not in _CODECS, f"is coded in {info.codec}"),
        (not wanted.container.startswith(INDEXED), f"is of kind {wanted.container}, in which seeks lead elsewhere"),
        (bool(np.any(np.diff(wanted.walk.timeline.times) <= 0)), "has several frames at one time"),
        (wanted.walk.hidden, f"has an edit list that hides {counted(wanted.walk.hidden, 'frame')}"),
        (wanted.walk.open, "has open groups of pictures"),
        (info.rotation, f"is to be rotated by {info.rotation} degrees"),
        (info.mirrored, "is to be mirrored"),
        (wanted.shape[1] < _NARROWEST, f"is {wanted.shape[1]} pixels wide"),
        (
            len(wanted.walk.timeline.times) < wanted.promised - wanted.walk.hidden,
            f"is cut short after {len(wanted.walk.timeline.times)} of {wanted.promised} frames",
        ),
    ):
        if wrong:
            raise ValueError(f"{wanted.named} {why}, which decord gets wrong; choose reader=pyav")
