"""Videos as most of the program wants them: read by PyAV in this process within generous limits, and written as mp4.

Training reads through the `VideoReader` that `conf/reader/` names instead.
"""

from __future__ import annotations

from sora.data.decoding.pyav import PyAVReader, Shown, settled, stream
from sora.data.decoding.reader import Limits, Reading, ReadReport, VideoInfo, covering
from sora.data.mp4 import encode, write

__all__ = ["LIMITS", "PYAV", "Limits", "ReadReport", "Reading", "Shown", "VideoInfo"]
__all__ += ["covering", "encode", "probe", "read", "settled", "stream", "write"]

# Films are let in: they are read in stretches. One read gives 2 GiB at most.
LIMITS = Limits(pixels=4096 * 2304, frames=6 * 3600 * 120, seconds=6 * 3600.0, rate=1000.0, bytes=2 << 30)
PYAV = PyAVReader(limits=LIMITS)
probe, read = PYAV.probe, PYAV.read
