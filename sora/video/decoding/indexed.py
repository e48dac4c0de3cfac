"""Reading by frame number, shared by backends that have no reading by time: PyAV's times of the file decide which frames a read wants.

Such a backend's `read` is `by_number` with its own `decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from sora.system.terminal import counted
from sora.video.decoding.pictures import is_picture
from sora.video.decoding.pyav import PyAVReader
from sora.video.demuxing.containers import opened
from sora.video.demuxing.timeline import PacketScan, measured, walked
from sora.video.reader import (
    HOLE,
    LAST_FOR,
    Limits,
    Reading,
    ReadReport,
    Source,
    VideoInfo,
    check_rate,
    check_room,
    check_start,
    covering,
    middle,
    named,
)


@dataclass(frozen=True, kw_only=True)
class IndexedRead:
    """A read in frame numbers. content: the file's bytes. fps: of the result. shape: (H, W) to decode to; `size` is its centre crop.

    promised: the header's number of frames (0: none). container: FFmpeg's name of it.
    """

    named: str
    content: bytes
    info: VideoInfo
    walk: PacketScan
    numbers: Int[np.ndarray, "T"]
    fps: float
    shape: tuple[int, int]
    report: ReadReport
    promised: int
    container: str


def by_number(
    decode: Callable[[IndexedRead], tuple[int, UInt8[np.ndarray, "T H W 3"]]],
    source: Source,
    *,
    backend: str,
    start: float,
    first: int | None,
    frames: int | None,
    fps: float | None,
    size: tuple[int, int] | None,
    name: str | None,
    limits: Limits,
) -> Reading:
    """Read as `VideoReader.read` describes. decode: returns the backend's count of frames, and the frames `numbers` at `shape`.

    Also raises ValueError if the backend finds another number of frames than PyAV. Images are read by Pillow for all backends.
    """
    if is_picture(source):
        reader = PyAVReader(limits=limits)
        return reader.read(source, start=start, first=first, frames=frames, fps=fps, size=size, name=name)
    wanted = asked(source, start=start, first=first, frames=frames, fps=fps, size=size, name=name, limits=limits)
    found, pictures = decode(wanted)
    if found != len(wanted.walk.timeline.times):
        raise ValueError(
            f"{wanted.named} has {counted(len(wanted.walk.timeline.times), 'frame')}, {backend} finds {found}; choose reader=pyav"
        )
    rows, columns = middle(*wanted.shape, size)
    return Reading(np.ascontiguousarray(pictures[:, rows, columns]), wanted.fps, wanted.report)


def asked(
    source: Source,
    *,
    start: float,
    first: int | None,
    frames: int | None,
    fps: float | None,
    size: tuple[int, int] | None,
    name: str | None,
    limits: Limits,
) -> IndexedRead:
    """The numbers of the frames that `VideoReader.read` describes. Raises ValueError as it does."""
    told, content = named(source, name), _content(source, named(source, name), limits)
    check_start(start, first, fps)
    info = PyAVReader(limits=limits).probe(content, name=told)
    with opened(content, told, limits) as (container, video, _):
        promised, kind = video.frames, container.format.name
        walk = walked(container, video, info, limits)
        check_rate(fps, info if fps is None or fps <= info.fps else measured(container, video, info, walk), told)
    if first is None:
        numbers, late = chosen(walk, start=start, frames=frames, fps=fps, step=1 / info.fps)
    else:
        numbers, late = np.arange(len(walk.timeline.times))[first:][:frames], 0
    if not len(numbers):
        raise ValueError(f"{told} has no frame that decodes from {f'{start:g} s' if first is None else f'frame {first}'} on")
    check_room(info, start=start, frames=len(numbers), fps=fps, size=size, most=limits.bytes, named=told)
    return IndexedRead(
        named=told,
        content=content,
        info=info,
        walk=walk,
        numbers=numbers,
        fps=fps or info.fps,
        shape=covering(info.height, info.width, size) if size else (info.height, info.width),
        report=ReadReport(decoded=len(set(numbers)), late=late, missing=frames - len(numbers) if frames is not None else 0),
        promised=promised,
        container=kind,
    )


def chosen(walk: PacketScan, *, start: float, frames: int | None, fps: float | None, step: float) -> tuple[Int[np.ndarray, "T"], int]:
    """The numbers of the frames nearest to start, start + 1/fps, ..., and how many of them are far off because the container lost others.

    Of two equally near frames the earlier is taken; the last frame counts for half a `step` (seconds). fps None: all from `start` on.
    """
    times = walk.timeline.times
    if fps is None:
        return np.flatnonzero(times >= start - step / 2)[:frames], 0
    most = max(0, int(np.floor((times[-1] + LAST_FOR * step - start) * fps + 1e-9)) + 1) if len(times) else 0
    targets = start + np.arange(most if frames is None else min(frames, most)) / fps
    numbers = np.searchsorted((times[1:] + times[:-1]) / 2 + 1e-9, targets)
    far = np.abs(times[numbers] - targets) > 1.5 * step + HOLE
    lost = [any(before < target < after for before, after in walk.losses) for target in targets]
    return numbers, int(np.sum(far & np.asarray(lost, bool)))


def _content(source: Source, named: str, limits: Limits) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        size = Path(source).stat().st_size
        if size > limits.bytes:
            raise ValueError(f"{named} has {size} bytes and would be read whole, the limit is {limits.bytes} (limits.bytes)")
        return Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{named} cannot be read: {error.strerror or error}") from None
