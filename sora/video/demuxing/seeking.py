"""How a read gets to its first frame, so that its frames equal those of a read from the file's first packet.

A file's index is trusted if the packet that it leads to confirms it; else the packets are walked through, without decoding any that a later
keyframe makes needless; and if even that gave faults, everything is decoded from the first packet on.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from hashlib import blake2b

import av.error
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sora.video.demuxing.groups import GopType, entry
from sora.video.demuxing.timeline import Packets, PacketTimes
from sora.video.reader import Source

ABOVE = 1.0  # seconds: up to a nearer start, decoding costs less than seeking
INDEXED = ("mov", "matroska")  # containers with an index of keyframes; in others FFmpeg searches by time and lands too late
_BACK = (0.0, 2.0)  # seconds before the start to seek to: an index may have decoding times, which are earlier than display times
_HELD = 64 << 20  # bytes of packets that are held while a later keyframe may come
_TOLD_BY = 1 << 16  # bytes at either end that identify a file in memory


class Way(IntEnum):
    """How a file is read. INDEX: seek with the file's index. WALK: go through all packets. DECODE: decode all frames."""

    INDEX = 0
    WALK = 1
    DECODE = 2


class Ways:
    """The way that each of the latest `most` files needed, so that a failed way is not tried again. Files are identified by path, size and
    modification time, files in memory by size and both ends."""

    def __init__(self, most: int) -> None:
        self._most, self._found = most, OrderedDict[tuple, Way]()

    def of(self, source: Source) -> Way:
        key = _key(source)
        if key in self._found:
            self._found.move_to_end(key)
        return self._found.get(key, Way.INDEX)

    def note(self, source: Source, way: Way) -> None:
        key = _key(source)
        self._found[key] = way
        self._found.move_to_end(key)
        if way is Way.INDEX:
            del self._found[key]
        elif len(self._found) > self._most:
            self._found.popitem(last=False)

    def __len__(self) -> int:
        return len(self._found)


def _key(source: Source) -> tuple:
    if isinstance(source, bytes):
        return len(source), blake2b(source[:_TOLD_BY] + source[-_TOLD_BY:], digest_size=16).digest()
    found = os.stat(source)
    return os.fspath(source), found.st_size, found.st_mtime_ns


WAYS = Ways(4096)  # the ways of this process


class Entries:
    """The packets of one opened file at which decoding can begin. `packet in entries`: for frames that are shown from `earliest` on."""

    def __init__(self, video: VideoStream, codec: str, clock: PacketTimes, earliest: float) -> None:
        self._codec, self._clock, self._earliest = codec, clock, earliest
        self._extradata = bytes(video.codec_context.extradata or b"")

    def __contains__(self, packet: Packet) -> bool:
        time = self._clock.of(packet)
        return time is not None and time <= self._earliest and self.begins(packet)

    def begins(self, packet: Packet) -> bool:
        """Whether no frame that is shown from this packet on needs earlier packets."""
        if not packet.is_keyframe or not packet.size or packet.pts is None:
            return False
        found = entry(memoryview(packet), self._codec, self._extradata)
        # If times follow from the frames' order, no frame after the keyframe may be missing.
        return found is GopType.CLOSED or (found is GopType.OPEN and not self._clock.by_place)


def head(packets: Packets, video: VideoStream) -> VideoFrame | None:
    """The frame that the next packet gives by itself. The packet is put back, and the decoder is flushed.

    The decoder keeps parameters that only the first packet has, such as the encoder's version, by which it corrects that encoder's errors.
    """
    packet = next(packets, None)
    if packet is None:
        return None
    packets.back([packet])
    frames: list[VideoFrame] = []
    for one in (packet, None):
        try:
            frames += video.codec_context.decode(one)
        except av.error.FFmpegError:
            continue
    video.codec_context.flush_buffers()
    return frames[0] if frames else None


def led(container: InputContainer, video: VideoStream, clock: PacketTimes, entries: Entries, earliest: float) -> Packets | None:
    """The packets from where the index leads for `earliest`; None if nothing confirms that place."""
    if not container.format.name.startswith(INDEXED):
        return None
    for back in _BACK:
        try:
            container.seek(clock.stamp(earliest - back), stream=video)
        except av.error.FFmpegError:
            return None
        packets = Packets(container, video, clock)
        first = next(packets, None)
        if first is not None and first in entries:
            packets.back([first])
            return packets
    return None


def walked_to(packets: Packets, entries: Entries, clock: PacketTimes, earliest: float) -> Iterator[Packet]:
    """The packets from the last entry point on, or all. packets: from the file's first one on."""
    held: list[Packet] = []
    size, waits = 0, True
    for packet in packets:
        if waits and packet in entries:
            held, size = [], 0
        held.append(packet)
        size += packet.size
        time = clock.of(packet)
        # After a frame past the start has come, every later keyframe is shown after it.
        waits = waits and time is not None and time <= earliest and size <= _HELD
        if not waits:
            yield from held
            held = []
    yield from held
