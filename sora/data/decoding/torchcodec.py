"""The torchcodec reader: fast where frames are wanted at full size. It needs FFmpeg's shared libraries on the machine.

It loses all that follows a damaged packet, and does not notice flipped bits (the hashes of an index do).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import numpy as np

from sora.data.decoding.indexed import asked
from sora.data.decoding.pyav import PyAVReader
from sora.data.decoding.reader import Limits, Reading, Source, VideoInfo, middle

_NEEDS = (
    "reader=torchcodec needs the package torchcodec that fits your torch (without CUDA: pip install 'torchcodec==0.13.*') and the shared"
    " libraries of FFmpeg 4 to 8; or choose reader=pyav"
)


@dataclass(frozen=True, kw_only=True)
class TorchcodecReader:
    """A `VideoReader`. Headers are read by PyAV, which also says which frames are asked for; torchcodec decodes and resizes them."""

    limits: Limits

    def identity(self) -> str:
        try:
            import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
        except (ImportError, OSError, RuntimeError) as error:
            told = str(error).strip().splitlines()[0]
            raise ValueError(f"{_NEEDS}; importing it fails: {told}") from None
        return f"torchcodec {metadata.version('torchcodec')} {PyAVReader(limits=self.limits).identity()}"

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """See `VideoReader`."""
        return PyAVReader(limits=self.limits).probe(source, name=name, timeline=timeline)

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
        """See `VideoReader`; also a `ValueError` where torchcodec finds other frames in the file than PyAV."""
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        from torchcodec.transforms import Resize  # pyright: ignore[reportMissingImports]

        wanted = asked(source, start=start, frames=frames, fps=fps, size=size, name=name, limits=self.limits)
        height, width = wanted.shape
        stored = (wanted.info.height, wanted.info.width)
        resize = [Resize(wanted.shape)] if wanted.shape != stored or wanted.info.pixel_aspect != 1 else []
        try:
            video = VideoDecoder(wanted.content, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=resize)
            if len(video) != len(wanted.walk.timeline.times):
                raise ValueError(
                    f"{wanted.named} has {len(wanted.walk.timeline.times)} frames, torchcodec finds {len(video)}; choose reader=pyav"
                )
            pictures = video.get_frames_at(wanted.numbers.tolist()).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{wanted.named} does not decode: {str(error).strip().splitlines()[0]}") from None
        rows, columns = middle(height, width, size)
        return Reading(np.ascontiguousarray(pictures[:, rows, columns]), wanted.fps, wanted.report)
