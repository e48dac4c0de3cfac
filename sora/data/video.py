"""Videos as most of the program wants them: read by PyAV within generous limits, and written as mp4.

`probe` and `read` decode in this process, and are for processes that are guarded already (`sora.data.workers`); whoever else reads files
that may be a stranger's reads them by `CONFINED`, in a process that is killed where a file takes too long or too much. Training reads
through the `VideoReader` that `conf/reader/` names instead.
"""

from __future__ import annotations

import atexit
from dataclasses import replace

from sora.data.decoding.guarded import GuardedReader
from sora.data.decoding.pyav import PyAVReader, Shown, settled, stream
from sora.data.decoding.reader import Limits, Reading, ReadReport, VideoInfo, covering
from sora.data.mp4 import encode, write

__all__ = ["CONFINED", "LIMITS", "PYAV", "Limits", "ReadReport", "Reading", "Shown", "VideoInfo"]
__all__ += ["covering", "encode", "probe", "read", "settled", "stream", "write"]

# Films are let in: they are read in stretches. One read gives 2 GiB at most.
LIMITS = Limits(pixels=4096 * 2304, frames=6 * 3600 * 120, seconds=6 * 3600.0, rate=1000.0, bytes=2 << 30)
PYAV = PyAVReader(limits=LIMITS)
probe, read = PYAV.probe, PYAV.read
# The frames of one read lie twice in memory for a moment: 129 at 1080p are 800 MB.
CONFINED = GuardedReader(reader=PyAVReader(limits=replace(LIMITS, bytes=832 << 20)), seconds=12.0, memory_gb=2.0, restart_after=2000)
atexit.register(CONFINED.close)
