"""What every reader of videos is: the protocol, what it tells of a file and of a read, and what a file may ask for.

Frames are uint8 (T, H, W, 3) RGB, upright (rotated and mirrored as the file's metadata says) and with square pixels. Times are seconds
from the first frame that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, UInt8

Source = Path | str | bytes
HOLE = 0.25  # seconds: files of variable rate leave out frames in which nothing moves; a wider gap is a loss
LAST_FOR = 0.51  # of a frame's time that the last one serves: half, and what time stamps are rounded by


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for, judged by its header before anything is decoded, and while decoding should the header lie.

    pixels: of one frame. frames, seconds and rate (frames a second): of the whole file. bytes: of the frames of one read.
    """

    pixels: int
    frames: int
    seconds: float
    rate: float
    bytes: int


class Timeline(NamedTuple):
    """Every frame of a file that is shown, in the order of showing: its time in seconds, and whether decoding can begin with it."""

    times: Float64[np.ndarray, "frames"]
    keyframes: Bool[np.ndarray, "frames"]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the header says. height and width as shown: rotated, with square pixels. rotation: degrees clockwise that were applied;
    mirrored: left and right changed places after that.

    fps is the average rate; frames is the header's count, or duration x fps where it has none. pixel_aspect: width / height of a
    stored pixel. colour_matrix ("bt709", ...) and colour_range ("limited", "full") as tagged, "unspecified" where they are not.
    transfer ("pq", "hlg", or "" for what is shown as it is) and wide (colours of BT.2020), as tagged. interlaced: by the first frame.
    timeline: only where it was asked for; `frames`, `fps` and `duration` are by it then, and lacks says what the file once held, by its
    header or by what its frames refer to, and does not hold ("": nothing); run is the most frames from one at which decoding can begin to
    the next.
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
        """What pictures read from it do not show as it was meant: they are neither deinterlaced nor mapped to fewer tones."""
        hdr = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)"}.get(self.transfer, "BT.2020 colours" if self.wide else "")
        return (*(("interlaced",) if self.interlaced else ()), *((hdr,) if hdr else ()))


@dataclass
class ReadReport:
    """What went wrong in a read: packets refused by the decoder, frames it marked corrupt (also those that lie between the ones that are
    read, which may refer to them), frames far from their time, frames missing."""

    decoded: int = 0
    errors: int = 0
    corrupt: int = 0
    late: int = 0
    missing: int = 0

    @property
    def faults(self) -> tuple[int, int, int]:
        """What went wrong with frames that are there."""
        return self.errors, self.corrupt, self.late

    @property
    def clean(self) -> bool:
        return not (self.errors or self.corrupt or self.late or self.missing)

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("errors", "corrupt", "late", "missing") if getattr(self, name)}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "clean"


class Reading(NamedTuple):
    """Frames of one read, at a constant rate (or the file's own), and how well it went."""

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float
    report: ReadReport


@runtime_checkable
class VideoReader(Protocol):
    """A backend. Whatever a file does to it comes out as a `ValueError` that names the file; what it would get wrong, it refuses so.

    name: of the file in errors, where the source is bytes.
    """

    def identity(self) -> str:
        """The backend and the versions that its pixels depend on: part of what frames made from them are known by."""
        ...

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """What the file is. timeline: also the time of every frame, for which the whole file is walked through (not decoded)."""
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

        first: begin with the frame of this number, in place of a time; frames are counted as they are shown, whatever their times are.
        Whatever lies before the start, the frames are those that a read of the whole file gives there. At `fps`, each frame is the one
        nearest in time. size: (H, W) to fill, aspect kept, what stands over cut off evenly. Fewer frames than asked for, and damage, are
        told in the report; no frame at all, a rate above the file's, and frames beyond the reader's limits are a `ValueError`.
        """
        ...


def named(source: Source, name: str | None) -> str:
    """What a source is called in errors."""
    return name or (f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source))


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) of the same aspect that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def middle(height: int, width: int, size: tuple[int, int] | None) -> tuple[slice, slice]:
    """Rows and columns of the middle `size` of frames of height x width; None: all."""
    if size is None:
        return slice(None), slice(None)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return slice(top, top + size[0]), slice(left, left + size[1])


def check_rate(fps: float | None, info: VideoInfo, named: str) -> None:
    """Raise ValueError if `fps` is above the file's: frames are not made up. A thousandth is let go: 29.97 is asked of 30000/1001."""
    if fps is not None and not 0 < fps <= info.fps * 1.001:
        raise ValueError(f"{named} has {info.fps:.6g} frames a second, {fps:g} were asked for; lower fps")


def check_start(start: float, first: int | None, fps: float | None) -> None:
    """Raise ValueError for a read that begins at a time and at a number, or that counts frames at another rate than the file's."""
    if first is not None and (start or fps is not None or first < 0):
        raise ValueError(f"first={first} counts the file's own frames from 0 on: it goes without start ({start:g}) and fps ({fps})")


def check_room(
    info: VideoInfo, *, start: float, frames: int | None, fps: float | None, size: tuple[int, int] | None, most: int, named: str
) -> int:
    """How many frames a read will give, judged by the header; a `ValueError` if they are more than `most` bytes."""
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
