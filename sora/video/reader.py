"""The protocol of video readers, the facts that they report of a file and of a read, and the limits on a file.

Frames are uint8 (T, H, W, 3) RGB, upright (rotated and mirrored as the file's metadata says) and with square pixels. Times are seconds from
the first frame that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, UInt8

Source = Path | str | bytes
HOLE = 0.25  # seconds: files of variable rate omit frames in which nothing moves; a wider gap counts as a loss
LAST_FOR = 0.51  # how long the last frame counts, in frames: half of one, and the rounding of time stamps


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits on a file, checked on its header before decoding, and while decoding in case the header is wrong.

    pixels: of one frame. frames, seconds and rate (frames a second): of the whole file. bytes: of the frames of one read.
    """

    pixels: int
    frames: int
    seconds: float
    rate: float
    bytes: int


class Timeline(NamedTuple):
    """Every frame of a file in display order: its time in seconds, and whether decoding can begin with it."""

    times: Float64[np.ndarray, "frames"]
    keyframes: Bool[np.ndarray, "frames"]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The facts of a file by its header. height, width: as shown, rotated and with square pixels. rotation: degrees clockwise that reading
    applies; mirrored: left and right are swapped after that.

    fps is the average rate; frames is the header's count, or duration x fps if it has none. pixel_aspect: width / height of a stored pixel.
    colour_matrix ("bt709", ...) and colour_range ("limited", "full"): as tagged, "unspecified" without a tag. transfer: as tagged, "pq",
    "hlg", or "" for ordinary video; wide: BT.2020 colours. interlaced: by the first frame. timeline: only if it was asked for; then
    `frames`, `fps` and `duration` follow from it; lacks says which part, by the header or by references between frames, is missing from the
    file ("": none); run is the most frames from one at which decoding can begin to the next.
    """

    frames: int
    fps: float
    height: int
    width: int
    duration: float
    rotation: int
    mirrored: bool
    codec: str
    pixel_format: str
    pixel_aspect: float
    colour_matrix: str
    colour_range: str
    transfer: str = ""
    wide: bool = False
    interlaced: bool = False
    lacks: str = ""
    run: int = 0
    timeline: Timeline | None = None

    @property
    def odd(self) -> tuple[str, ...]:
        """Properties that decoded pictures do not reproduce: readers neither deinterlace nor tone-map."""
        hdr = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)"}.get(self.transfer, "BT.2020 colours" if self.wide else "")
        return (*(("interlaced",) if self.interlaced else ()), *((hdr,) if hdr else ()))


@dataclass
class ReadReport:
    """The faults of a read: packets that the decoder refused, frames that it marked corrupt (also unwanted ones, which the wanted may refer
    to), frames far from their target time, missing frames."""

    decoded: int = 0
    errors: int = 0
    corrupt: int = 0
    late: int = 0
    missing: int = 0

    @property
    def faults(self) -> tuple[int, int, int]:
        """The faults that concern frames of the result."""
        return self.errors, self.corrupt, self.late

    @property
    def clean(self) -> bool:
        return not (self.errors or self.corrupt or self.late or self.missing)

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("errors", "corrupt", "late", "missing") if getattr(self, name)}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "clean"


class Reading(NamedTuple):
    """Frames of one read, at a constant rate (or the file's own), and the report on its faults."""

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float
    report: ReadReport


@runtime_checkable
class VideoReader(Protocol):
    """A backend. Any failure on a file is a `ValueError` with the file's name; so are files that the backend would read wrong.

    name: of the file in errors, if the source is bytes.
    """

    def identity(self) -> str:
        """The backend and the versions that its pixels depend on, a part of the identity of everything made from its frames."""
        ...

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """The facts of a file. timeline: also the time of every frame, for which all packets are walked through (not decoded)."""
        ...

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
        """Frames from `start` seconds: `frames` of them (None: to the end) at `fps` (None: every frame of the file).

        first: begin with the frame of this number instead of a time; frames are counted in display order, whatever their times. The frames
        equal those that a read of the whole file gives there. At `fps`, each frame is the one nearest in time. size: (H, W) to fill, with
        the aspect ratio kept and the overhang cropped evenly. Fewer frames than asked for, and damage, are in the report; no frame at all,
        a rate above the file's, and frames beyond the reader's limits raise `ValueError`.
        """
        ...


def named(source: Source, name: str | None) -> str:
    """A name for a source in errors."""
    return name or (f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source))


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) of the same aspect that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def middle(height: int, width: int, size: tuple[int, int] | None) -> tuple[slice, slice]:
    """Slices of the rows and columns of a centre crop of `size` from frames of height x width; None: all."""
    if size is None:
        return slice(None), slice(None)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return slice(top, top + size[0]), slice(left, left + size[1])


def check_rate(fps: float | None, info: VideoInfo, named: str) -> None:
    """Raise ValueError if `fps` is above the file's rate, by more than a thousandth: 29.97 fits a file of 30000/1001."""
    if fps is not None and not 0 < fps <= info.fps * 1.001:
        raise ValueError(f"{named} has {info.fps:.6g} frames a second, {fps:g} were asked for; lower fps")


def check_start(start: float, first: int | None, fps: float | None) -> None:
    """Raise ValueError for a read with both a time and a number to begin at, or one by number at another rate than the file's."""
    if first is not None and (start or fps is not None or first < 0):
        raise ValueError(f"first={first} counts the file's own frames from 0 on: it goes without start ({start:g}) and fps ({fps})")


def check_room(
    info: VideoInfo, *, start: float, frames: int | None, fps: float | None, size: tuple[int, int] | None, most: int, named: str
) -> int:
    """How many frames a read will give, by the header; ValueError if they are more than `most` bytes."""
    height, width = size or (info.height, info.width)
    left = info.frames if fps in (None, info.fps) and not start else int(max(0.0, info.duration - start) * (fps or info.fps)) + 2
    expected = left if frames is None else min(frames, left) if info.frames else frames
    if (size_of_all := expected * height * width * 3) > most:
        raise ValueError(
            f"{named} decodes to {size_of_all:,} bytes, {expected} frames of {width}x{height}, {most:,} are the most; read fewer frames "
            "(generated.frames= and real.frames= of an evaluation) or a smaller size, or raise limits.bytes of a reader"
        )
    return expected


def too_large(named: str, most: int) -> ValueError:
    return ValueError(f"{named} decodes to more than {most} bytes; read fewer frames or a smaller size, or raise limits.bytes")
