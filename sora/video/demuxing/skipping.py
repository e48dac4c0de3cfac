"""For reads at a low rate, tells the decoder to skip frames that are not wanted and that no other frame refers to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from math import ceil

from av.packet import Packet
from av.video.stream import VideoStream

CODECS = ("h264", "hevc")  # whose decoders skip exactly the frames they are told to (dav1d skips others too)
AHEAD = 24  # packets of look-ahead; no codec shows a frame more than 16 after its decoding


class FrameSkipper:
    """Marks packets that the decoder skips at a low rate: frames that no other frame refers to and that are nearest to no target time.

    A frame is skipped only if another one is *known* to be nearer, so a short look-ahead costs time and never changes the result.
    """

    def __init__(self, start: float, fps: float, time: Callable[[Packet], float | None]) -> None:
        self._start, self._fps, self._time = start, fps, time

    def marked(self, packets: Iterator[Packet], video: VideoStream) -> Iterator[Packet]:
        context, ahead = video.codec_context, deque[Packet]()
        seen = deque[float](maxlen=2 * AHEAD)  # times of the frames before and after
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
        """Whether a frame at `time` may be the nearest to some target, as far as the times seen show."""
        before = max((other for other in seen if other < time), default=time - 1)
        after = min((other for other in seen if other > time), default=time + 1)
        first = ceil(((before + time) / 2 - self._start) * self._fps - 1e-6)
        return max(first, 0) <= ((time + after) / 2 - self._start) * self._fps + 1e-6
