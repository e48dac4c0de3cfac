"""Frames that a read at a low rate does not want and that no other one refers to: the decoder is told to leave them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from math import ceil

from av.packet import Packet
from av.video.stream import VideoStream

CODECS = ("h264", "hevc")  # whose decoders leave out just the frames they are told to (dav1d leaves out others too)
AHEAD = 24  # packets that are looked ahead; no codec shows a frame more than 16 after it is decoded


class FrameSkipper:
    """Tells the decoder which packets to leave out at a low rate: frames that no other one refers to, and that are nearest to no target.

    Another frame is *known* to be nearer, so a look ahead that is too short costs time and never changes what is read.
    """

    def __init__(self, start: float, fps: float, time: Callable[[Packet], float | None]) -> None:
        self._start, self._fps, self._time = start, fps, time

    def marked(self, packets: Iterator[Packet], video: VideoStream) -> Iterator[Packet]:
        context, ahead = video.codec_context, deque[Packet]()
        seen = deque[float](maxlen=2 * AHEAD)  # the times behind and ahead
        for packet in chain(packets, [None] * AHEAD):
            if packet is not None:
                ahead.append(packet)
                if (time := self._time(packet)) is not None:
                    seen.append(time)
            if ahead and (packet is None or len(ahead) > AHEAD):
                current = ahead.popleft()
                context.skip_frame = "DEFAULT" if (time := self._time(current)) is None or self._needed(time, seen) else "NONREF"
                yield current
        context.skip_frame = "DEFAULT"

    def _needed(self, time: float, seen: deque[float]) -> bool:
        """Whether a frame at `time` may be the nearest to some target, as far as is known."""
        before = max((other for other in seen if other < time), default=time - 1)
        after = min((other for other in seen if other > time), default=time + 1)
        first = ceil(((before + time) / 2 - self._start) * self._fps - 1e-6)
        return max(first, 0) <= ((time + after) / 2 - self._start) * self._fps + 1e-6
