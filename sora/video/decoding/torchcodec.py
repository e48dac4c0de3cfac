"""The torchcodec reader, fast for frames at full size. It needs FFmpeg's shared libraries on the machine.

It loses everything after a damaged packet, and does not notice flipped bits (the hashes of an index do).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import numpy as np
from jaxtyping import UInt8

from sora.video.decoding.indexed import IndexedRead, by_number
from sora.video.decoding.pyav import PyAVReader
from sora.video.reader import Limits, Reading, Source, VideoInfo

_NEEDS = (
    "reader=torchcodec needs the package torchcodec that fits your torch (without CUDA: pip install 'torchcodec==0.13.*') and the shared"
    " libraries of FFmpeg 4 to 8; or choose reader=pyav"
)


@dataclass(frozen=True, kw_only=True)
class TorchcodecReader:
    """A `VideoReader` that decodes and resizes with torchcodec; PyAV reads the headers and chooses the frames."""

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
        first: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> Reading:
        """See `VideoReader` and `by_number`."""
        given = {"start": start, "first": first, "frames": frames, "fps": fps, "size": size, "name": name}
        return by_number(_decoded, source, backend="torchcodec", limits=self.limits, **given)


def _decoded(wanted: IndexedRead) -> tuple[int, UInt8[np.ndarray, "T H W 3"]]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
    from torchcodec.transforms import Resize  # pyright: ignore[reportMissingImports]

    stored = (wanted.info.height, wanted.info.width)
    resize = [Resize(wanted.shape)] if wanted.shape != stored or wanted.info.pixel_aspect != 1 else []
    try:
        video = VideoDecoder(wanted.content, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=resize)
        numbers = wanted.numbers[wanted.numbers < len(video)]  # it may count fewer frames, which `by_number` refuses
        # Decode the first frame: some codec parameters are in the first packet only.
        return len(video), video.get_frames_at([0, *numbers.tolist()]).data.numpy()[1:]
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{wanted.named} does not decode by torchcodec: {str(error).strip().splitlines()[0]}; choose reader=pyav"
        ) from None
