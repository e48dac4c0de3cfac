"""When the frames of a file are shown, from its packets without decoding: the only place that decides how many frames a file has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora.system.terminal import counted
from sora.video.demuxing.groups import GopType, entry
from sora.video.reader import HOLE, Limits, Timeline, VideoInfo

_BETWEEN_BLOCKS = 256  # bytes, more than Matroska writes between two blocks
_COUNTED = ("mov", "avi")  # containers whose headers count the frames
_ROUNDED = 0.5  # seconds by which the header of a Matroska file may be off
_GUESSED = ("mpeg1video", "mpeg2video")
_USUAL = 0.9  # share of the steps between frames that must fit a rate
_LOOK = 16 << 20  # bytes within which a keyframe is searched for
_VP8_SHOWN = 0x10  # RFC 6386, 9.1


class PacketTimes:
    """Times of packets and frames in seconds from the first frame that is shown.

    An AVI has no display times, and FFmpeg guesses most of a program stream's: for these the n-th frame in display order gets the n-th of
    the packets' times.
    """

    def __init__(self, container: InputContainer, video: VideoStream, *, fps: float, origin: int) -> None:
        self.untold = container.format.name == "avi"
        self.by_place = self.untold or container.format.name == "mpeg"
        self._base, self._origin, self._floor = _base(video), origin, origin
        self._step = 1 / fps
        self._last = -self._step
        self._sent: list[int] = []  # time stamps of frames that have not come yet, as a heap

    def of(self, packet: Packet) -> float | None:
        """When a packet is shown, or, in an AVI, decoded; None if the file does not say."""
        stamp = _stamp(packet, self.untold)
        return None if stamp is None else self._seconds(stamp)

    def stamp(self, time: float) -> int:
        """A time in ticks of the file's time base."""
        return int(time / self._base) + self._origin

    def begin(self, packet: Packet, *, anew: bool) -> None:
        """Note that frames are whole from this packet on; frames shown before it may be missing. anew: the decoder gets it first."""
        if (stamp := _stamp(packet, self.untold)) is not None and (anew or not self.by_place):
            self._floor = stamp
            self._sent.clear()

    def leads(self, packet: Packet | VideoFrame) -> bool:
        """Whether a packet or frame is shown before the first whole frame."""
        return not self.untold and packet.pts is not None and packet.pts < self._floor

    def sent(self, packet: Packet) -> None:
        """Note that a packet goes to the decoder."""
        stamp = _stamp(packet, self.untold)
        if stamp is not None and packet.size and not packet.is_discard and not self.leads(packet):
            heappush(self._sent, stamp)

    def refused(self, packet: Packet) -> None:
        """Note that the decoder refused a packet that was sent."""
        stamp = _stamp(packet, self.untold)
        if self.by_place and stamp in self._sent:
            self._sent.remove(stamp)
            heapify(self._sent)

    def lost(self, after: int) -> None:
        """Note that the file lost its content after a time stamp."""
        heappush(self._sent, after + 1)

    def shown(self, frame: VideoFrame) -> tuple[float, bool]:
        """When a decoded frame is shown, and whether a frame that should have come before it is missing."""
        missed = False
        if self.by_place:
            stamp = heappop(self._sent) if self._sent else None
        else:
            stamp = frame.pts
            while stamp is not None and self._sent and self._sent[0] <= stamp:
                missed = heappop(self._sent) < stamp or missed
        self._last = self._last + self._step if stamp is None else self._seconds(stamp)
        return self._last, missed

    def _seconds(self, stamp: int) -> float:
        return (stamp - self._origin) * self._base


def _base(video: VideoStream) -> float:
    return float(video.time_base or Fraction(1, 1000))


def _stamp(packet: Packet, untold: bool) -> int | None:
    return packet.dts if untold else packet.pts


class Packets:
    """A video's packets in file order, and an empty one at the end. broken: the container ended with an error.

    after: the time stamp after which a part of the file before the latest packet is lost, or None; `clock` is told of it. torn: the time
    stamps of the packets before which something is lost.
    """

    def __init__(self, container: InputContainer, video: VideoStream, clock: PacketTimes | None = None) -> None:
        # A damaged Matroska file goes on with its next whole block: only that block's position shows the loss. All streams lie in between.
        self._whole = container.format.name.startswith("matroska")
        # A program stream has the times of some frames only, and FFmpeg guesses the others for its own codecs.
        rate, placed = (
            video.guessed_rate or video.average_rate,
            container.format.name == "mpeg" and video.codec_context.name not in _GUESSED,
        )
        self._step = 1 / float(rate * video.time_base) if placed and rate and video.time_base else 0.0
        self._told: int | None = None
        self._since = 0
        # In concatenated files of these kinds, times restart at each file.
        self._joined = container.format.name in ("mpeg", "mpegts")
        self._length, self._shift = round(1 / float(rate * video.time_base)) if rate and video.time_base else 1, 0
        self._packets: Iterator[Packet] = container.demux(*(() if self._whole else (video,)))
        self._number, self.clock, self._back = video.index, clock, deque[Packet]()
        self._end: int | None = None
        self._last: int | None = None
        self._latest = 0
        self.torn: set[int | None] = set()
        self.ends = 0.0
        self.broken = False
        self.after: int | None = None

    def back(self, packets: Iterable[Packet]) -> None:
        """Put packets back, so that they come again before the others."""
        self._back.extend(packets)

    def __iter__(self) -> Iterator[Packet]:
        return self

    def __next__(self) -> Packet:
        self.after = None
        if self._back:
            return self._back.popleft()
        while True:
            try:
                packet = next(self._packets)
            except av.error.FFmpegError:  # the packets so far stay good
                self.broken = True
                raise StopIteration from None
            if self._joined and packet.stream.index == self._number:
                self._go_on(packet)
            lost = self._lost(packet)
            if lost and self._last is not None:
                self.after = self._last
                if self.clock is not None:
                    self.clock.lost(self._last)
            if packet.stream.index == self._number:
                self._fill(packet)
                if self.after is not None:
                    self.torn.add(packet.pts)
                self._last = packet.pts if packet.pts is not None else self._last
                return packet

    def _go_on(self, packet: Packet) -> None:
        """Shift a packet's times to continue the earlier ones, if a keyframe's lie more than a second before them."""
        if packet.pts is None or not packet.size:
            return
        if packet.is_keyframe and self._last is not None and packet.pts + self._shift < self._last - 1 / packet.time_base:
            self._shift = self._latest + self._length - packet.pts
            self._told = None
        packet.pts += self._shift
        if packet.dts is not None:
            packet.dts += self._shift
        self._latest = max(self._latest, packet.pts)

    def _fill(self, packet: Packet) -> None:
        """Give a packet the time of its position in the file, which is its display time but for reordered neighbours."""
        if not self._step or not packet.size:
            return
        placed = None if self._told is None else self._told + round(self._since * self._step)
        if placed is None or (packet.is_keyframe and packet.pts is not None and packet.pts - placed > HOLE / packet.time_base):
            placed, self._told, self._since = packet.pts, packet.pts, 0
        packet.pts = placed
        self._since += 1

    def _lost(self, packet: Packet) -> bool:
        """Whether a part of the file before a packet is lost."""
        if packet.pts is not None and packet.size:
            self.ends = max(self.ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if not self._whole or not packet.size or packet.pos is None:
            return False
        lost = self._end is not None and packet.pos > self._end + _BETWEEN_BLOCKS
        # A packet's side data, such as its transparency, lie after it.
        self._end = None if any(True for _ in packet.iter_sidedata()) else packet.pos + packet.size
        return lost


class Opening(NamedTuple):
    """How a file begins. origin: the time stamp of the first frame that is shown. dropped: packets before the first one that decodes."""

    origin: int
    dropped: int


def opening(container: InputContainer, packets: Packets, video: VideoStream, codec: str) -> Opening:
    """Look ahead to the first packet at which decoding can begin, which is the next to come. If none is near, no packet is dropped."""
    read: list[Packet] = []
    size, extradata, begun = 0, bytes(video.codec_context.extradata or b""), video.start_time or 0
    for packet in packets:
        read.append(packet)
        size += packet.size
        found = entry(memoryview(packet), codec, extradata) if packet.size and packet.is_keyframe else GopType.NONE
        if found is not GopType.NONE:
            packets.back([packet])
            stamp = _stamp(packet, container.format.name == "avi")
            told = stamp is None or packet.is_discard or (found is GopType.CLOSED and len(read) == 1)
            return Opening(begun if told or stamp is None else stamp, len(read) - 1)
        if size > _LOOK:
            break
    packets.back(read)
    return Opening(begun, 0)


class PacketScan(NamedTuple):
    """The facts of a file from its packets, without decoding.

    hidden: frames that an edit list hides. open: keyframes after which frames may still refer to earlier ones. losses: the times around
    parts that the container lost. dropped: packets at the beginning, and frames shown there, that need frames missing from the file.
    packets: the number of all. ends: seconds at which the last packet of any stream ends. broken: the container ended with an error. run:
    the most frames from one entry point for decoding to the next.
    """

    timeline: Timeline
    hidden: int
    open: int
    losses: tuple[tuple[float, float], ...]
    dropped: int
    packets: int
    ends: float
    broken: bool
    run: int


def walked(container: InputContainer, video: VideoStream, info: VideoInfo, limits: Limits, *, most: int | None = None) -> PacketScan:
    """Scan all packets of an opened file, which stands at its end afterwards. most: stop once this many first frames are known."""
    packets = Packets(container, video)
    origin, dropped = opening(container, packets, video, info.codec)
    clock = PacketTimes(container, video, fps=info.fps, origin=origin)
    times: list[float] = []
    keys: list[bool] = []
    losses: list[tuple[float, float]] = []
    hidden = unclosed = count = run = longest = 0
    extradata = bytes(video.codec_context.extradata or b"")
    for packet in packets:
        hidden += packet.is_discard
        count += packet.size > 0 or packet.dts is not None
        if not packet.size or packet.is_discard or _unseen(packet, info.codec):
            continue
        time = clock.of(packet)
        time = len(times) / info.fps if time is None else time
        if clock.leads(packet) and sum(keys) < 2:
            dropped += 1
            continue
        if packets.after is not None and times:
            losses.append((times[-1], time))
        found = entry(memoryview(packet), info.codec, extradata) if packet.is_keyframe else GopType.NONE
        unclosed += packet.is_keyframe and found is not GopType.CLOSED
        run = 1 if found is GopType.CLOSED or (found is GopType.OPEN and not clock.by_place) else run + 1
        longest = max(longest, run)
        times.append(time)
        keys.append(packet.is_keyframe)
        if len(times) > limits.frames:
            raise ValueError(f"{info.codec} video of more than {limits.frames} frames, whatever its header says; raise limits.frames")
        if most is not None and len(times) >= most:
            break
    order = np.argsort(times, kind="stable")
    timeline = Timeline(np.asarray(times, np.float64)[order], np.asarray(keys, bool)[order])
    return PacketScan(timeline, hidden, unclosed, tuple(losses), dropped, dropped + count, packets.ends, packets.broken, longest)


def _unseen(packet: Packet, codec: str) -> bool:
    """Whether a packet holds a frame that others refer to and that is never shown."""
    return codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN


def measured(container: InputContainer, video: VideoStream, info: VideoInfo, walk: PacketScan) -> VideoInfo:
    """The facts of a file by its packets, whatever its header says: frames, duration, frames a second, and missing parts."""
    times = walk.timeline.times
    count, rate = len(times), info.fps
    info = replace(info, frames=count, timeline=walk.timeline, lacks=_lacking(container, video, walk), run=walk.run)
    if not count:
        return replace(info, duration=0.0)
    if times[-1] > times[0] and not _holds(times, rate):
        rate = (count - 1) / float(times[-1] - times[0])
    return replace(info, fps=rate, duration=float(times[-1]) + 1 / rate)


def _holds(times: np.ndarray, rate: float) -> bool:
    """Whether frames come at this rate, except for a few that are lost or left out."""
    steps = np.diff(times) * rate
    usual = steps[np.abs(steps - 1) < 0.5]
    return len(usual) >= _USUAL * len(steps) and bool(abs(usual.sum() - len(usual)) <= 0.5)


def _lacking(container: InputContainer, video: VideoStream, walk: PacketScan) -> str:
    kind, lasts = container.format.name, (container.duration or 0) / av.time_base
    told = [f"its first {counted(walk.dropped, 'frame needs', 'frames need')} others, which it does not hold"] if walk.dropped else []
    if kind.startswith(_COUNTED) and walk.packets < video.frames:
        told.append(f"it breaks off after {walk.packets} of {counted(video.frames, 'frame')}")
    elif kind.startswith("matroska") and video.duration is None and lasts - walk.ends > _ROUNDED:
        told.append(f"it breaks off after {walk.ends:.1f} of {lasts:.1f} seconds")
    elif walk.broken:
        told.append(f"it breaks off with an error after {counted(walk.packets, 'frame')}")
    if walk.losses:
        told.append(f"of what lay behind {', '.join(f'{before:.1f}' for before, _ in walk.losses[:3])} s a part is lost")
    return "; ".join(told)
