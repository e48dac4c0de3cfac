"""The stage `transcode`: kept clips as mp4 files of constant rate, square pixels and closed groups of at most two seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sora.curation.inputs import Unit
from sora.curation.result_forms import POSITIVE, ResultForm
from sora.curation.results import CurationStage, hashed
from sora.curation.steps.finding import UnitWork
from sora.gate.sizes import Number
from sora.ingest.sources import fitted
from sora.video.decoding.pyav import Shown
from sora.video.encoding import encode_each
from sora.video.files import LIMITS, PYAV, VideoInfo, probe, read, settled, stream
from sora.video.stream_copy import may_be_copied, stream_copy

CHUNK = 8  # clip numbers of one unit: a film is not made in one piece
GROUP = 2.0  # seconds: the longest group of pictures of a stream that is copied
_ROUNDED = 1e-3  # seconds by which the times in a file may be off
MADE = pa.schema(
    [
        ("number", pa.int32()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("copied", pa.bool_()),
        ("media", pa.large_binary()),
        ("reason", pa.string()),
    ]
)  # one row for each clip. reason: why it could not be made, or ""


@dataclass(frozen=True)
class Transcode:
    """The stage `transcode`. fps: the most frames a second (None: the video's own). size: the short side in pixels that larger videos are
    scaled down to (None: no scaling). multiple: sides are cropped evenly to multiples of it. lossless: RGB without loss."""

    form = ResultForm(schema=MADE, least_made={"frames": 1, "fps": POSITIVE, "height": 1, "width": 1})
    fps: float | None
    size: int | None
    multiple: int
    lossless: bool

    def __post_init__(self) -> None:
        for name in ("size", "multiple"):
            if (value := getattr(self, name)) is not None:
                Number(1, whole=True).of(value, f"transcode.{name}")
        if self.fps is not None:
            Number(0, above=True, most=1000.0).of(self.fps, "transcode.fps")
        if not self.lossless and self.multiple % 2:
            raise ValueError(f"transcode.multiple={self.multiple}: sides of 4:2:0 video are even; use a multiple of 2 or lossless=true")

    def stage(self) -> CurationStage:
        return CurationStage("transcode", 1, {**asdict(self), "reader": PYAV.identity()})

    def units(self, unit: Unit, kept: Sequence[dict[str, Any]]) -> list[tuple[Unit, list[dict[str, Any]]]]:
        """The units of the kept clips of a video: those whose numbers lie in one chunk. kept: rows of its table of clips, in order."""
        chunks: dict[int, list[dict[str, Any]]] = {}
        for clip in kept:
            chunks.setdefault(clip["number"] // CHUNK, []).append(clip)
        spans = {chunk: [[clip[name] for name in ("number", "first", "end")] for clip in clips] for chunk, clips in chunks.items()}
        return [(Unit(hashed(unit.name, spans[chunk]), unit.told, unit.path), clips) for chunk, clips in sorted(chunks.items())]

    def __call__(self, work: UnitWork) -> pa.Table:
        path, info = Path(work.unit.path), probe(Path(work.unit.path), timeline=True)
        rows = [self._made(path, info, clip) for clip in work.tables["kept"].to_pylist()]
        return pa.table({name: [row[name] for row in rows] for name in MADE.names}, schema=MADE)

    def _made(self, path: Path, info: VideoInfo, clip: dict[str, Any]) -> dict[str, Any]:
        nothing = {"frames": 0, "fps": 0.0, "height": 0, "width": 0, "copied": False, "media": b"", "reason": ""}
        try:
            return nothing | {"number": clip["number"], **self._clip(path, info, clip["first"], clip["end"])}
        except ValueError as error:
            return nothing | {"number": clip["number"], "reason": str(error)}

    def _clip(self, path: Path, info: VideoInfo, first: int, end: int) -> dict[str, Any]:
        assert info.timeline is not None
        times = info.timeline.times
        if end > len(times):
            raise ValueError(f"its frames {first} to {end} are more than the {len(times)} of its video")
        height, width = fitted(info.height, info.width, self.size, self.multiple, key="transcode")
        fps = info.fps if self.fps is None else min(self.fps, info.fps)
        # The last frame that is taken is the span's own: the nearest to a later time may be of the next shot.
        count = int((times[end - 1] - times[first] + _ROUNDED) * fps) + 1
        said = {"frames": count, "fps": fps, "height": height, "width": width}
        whole = (first, end) == (0, len(times)) and (fps, height, width) == (info.fps, info.height, info.width)
        if whole and (copy := _copied(path, info)) is not None:
            return said | {"frames": end, "copied": True, "media": copy}
        make = partial(self._encoded, count=count, size=(height, width), fps=fps)
        return said | {"media": settled(make, path, start=float(times[first]), fps=fps, size=(height, width), limits=LIMITS)}

    def _encoded(self, shown: stream, *, count: int, size: tuple[int, int], fps: float) -> bytes:
        frames = _Counted(shown, count)
        media = encode_each(frames, fps, size=size, lossless=self.lossless)
        if frames.bad or frames.given < count:
            raise ValueError(f"{count - frames.given} of its {count} frames are missing and {frames.bad} are damaged ({shown.report})")
        return media


class _Counted:
    """The first `count` pictures of a stream; counts those that are given and those that are damaged."""

    def __init__(self, shown: Iterator[Shown], count: int) -> None:
        self._shown, self._count, self.given, self.bad = shown, count, 0, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        while self.given < self._count:
            picture = next(self._shown, None)
            if picture is None:
                return
            self.given += 1
            self.bad += not picture.good
            yield picture.pixels


def _copied(path: Path, info: VideoInfo) -> bytes | None:
    """The stream of a whole file, if it is already as `transcode` makes it and a copy of it shows the same frames."""
    if not may_be_copied(info) or info.run > GROUP * info.fps or info.frames * info.height * info.width * 3 > LIMITS.bytes // 4:
        return None
    return stream_copy(path, read(path).frames, limits=LIMITS)
