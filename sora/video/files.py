"""Reads videos with PyAV within generous limits, and writes them as mp4, for all of the program but training.

`probe` and `read` decode in this process, for processes that are guarded already (`sora.system.guarded_pool`). All others read files that
may be a stranger's with `CONFINED`, in a process that is killed if a file takes too long or too much memory. `probe_apart` and `read_apart`
are for functions that run in either kind of process. Training reads with the `VideoReader` of `conf/reader/` instead.
"""

from __future__ import annotations

import atexit
from dataclasses import replace

from sora.gate.confine import confined
from sora.video.decoding.guarded import GuardedReader
from sora.video.decoding.pyav import PyAVReader, Shown, settled, stream
from sora.video.encoding import encode, write
from sora.video.reader import Limits, Reading, ReadReport, Source, VideoInfo, VideoReader, covering

__all__ = ["CONFINED", "LIMITS", "PYAV", "Limits", "ReadReport", "Reading", "Shown", "VideoInfo"]
__all__ += ["covering", "encode", "probe", "probe_apart", "read", "read_apart", "settled", "stream", "write"]

# Films are allowed: they are read in parts. One read gives 2 GiB at most.
LIMITS = Limits(pixels=4096 * 2304, frames=6 * 3600 * 120, seconds=6 * 3600.0, rate=1000.0, bytes=2 << 30)
PYAV = PyAVReader(limits=LIMITS)
probe, read = PYAV.probe, PYAV.read
# The frames of one read are in memory twice for a moment: 129 at 1080p are 800 MB.
CONFINED = GuardedReader(reader=PyAVReader(limits=replace(LIMITS, bytes=832 << 20)), seconds=12.0, memory_gb=2.0, restart_after=2000)
# For a worker that needs the network, so cannot be confined, or the command's own process: the limits of a worker.
_APART = GuardedReader(reader=PYAV, seconds=120.0, memory_gb=8.0, restart_after=2000)
atexit.register(CONFINED.close)
atexit.register(_APART.close)


def probe_apart(source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
    """Probe in this process if it is confined, else in a confined child."""
    return _reader().probe(source, name=name, timeline=timeline)


def read_apart(
    source: Source, *, first: int | None = None, frames: int | None = None, size: tuple[int, int] | None = None, name: str | None = None
) -> Reading:
    """Read in this process if it is confined, else in a confined child."""
    return _reader().read(source, first=first, frames=frames, size=size, name=name)


def _reader() -> VideoReader:
    return PYAV if confined() else _APART
