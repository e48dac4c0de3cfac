"""The default reader: PyAV, which has its own FFmpeg with all codecs, reports corrupt frames, and reads the sound part of damaged files.

Files are opened as byte streams with the demuxer that their first bytes name: FFmpeg is never given a path, so a playlist or a reference
inside a file opens nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import inf
from typing import Any, NamedTuple, TypeVar

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from sora.system.terminal import counted
from sora.video.decoding import pictures
from sora.video.decoding.converting import Converter, FrameBuffer
from sora.video.demuxing.containers import Opened, opened, refused, upright
from sora.video.demuxing.endings import cut_off
from sora.video.demuxing.seeking import ABOVE, INDEXED, WAYS, Entries, Way, head, led, walked_to
from sora.video.demuxing.skipping import AHEAD, CODECS, FrameSkipper
from sora.video.demuxing.timeline import Packets, PacketTimes, measured, opening, walked
from sora.video.reader import HOLE, LAST_FOR, Limits, Reading, ReadReport, Source, VideoInfo, check_rate, check_room, check_start, named

T = TypeVar("T")
_GROUPS = 32  # the last groups of pictures that may still have frames in the decoder
_SAME = 1e-6  # seconds


class Shown(NamedTuple):
    """One frame of `stream`. time: its own, in seconds from the video's start. good: nothing went wrong since the keyframe before it, and
    no frame that should stand in its place was lost."""

    pixels: UInt8[np.ndarray, "H W 3"]
    time: float
    good: bool


@dataclass(frozen=True, kw_only=True)
class PyAVReader:
    """A `VideoReader` in this process. A crash of the decoder crashes the process: `GuardedReader` runs it in a child."""

    limits: Limits

    def identity(self) -> str:
        versions = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
        libraries = " ".join(f"{name} {version}" for name, version in versions.items())
        return f"pyav {av.__version__} {libraries}"

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """See `VideoReader`. One frame is decoded, after the limits are checked, since the rotation is stored with frames."""
        if pictures.is_picture(source):
            return pictures.probe(source, name=name, timeline=timeline, limits=self.limits)
        shown = stream(source, name=name, limits=self.limits)
        try:
            if next(shown.undecided(), None) is None:
                raise ValueError(f"{named(source, name)} has no frame that decodes")
        finally:
            shown.close()
        if not timeline:
            return shown.info
        with opened(source, name, self.limits) as (container, video, info):
            told = measured(container, video, shown.info, walked(container, video, info, self.limits))
            within = "" if told.lacks else cut_off(source, container.format.name)
        return replace(told, lacks=f"it breaks off after {counted(told.frames, 'frame')}, within {within}") if within else told

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
        """See `VideoReader`."""
        told = named(source, name)
        check_start(start, first, fps)

        def taken(shown: stream) -> tuple[FrameBuffer, ReadReport, float]:
            begin = start if first is None else first / shown.info.fps
            room = check_room(shown.info, start=begin, frames=frames, fps=fps, size=size, most=self.limits.bytes, named=told)
            pictures = FrameBuffer(max(room, 1), self.limits.bytes, told)
            for frame, convert, *_ in shown.undecided():
                pictures.add(frame, convert)
                if pictures.count == frames:
                    break
            return pictures, shown.report, shown.fps

        pictures, report, rate = settled(taken, source, start=start, first=first, fps=fps, size=size, name=name, limits=self.limits)
        if not pictures.count:
            raise ValueError(f"{told} has no frame that decodes from {f'{start:g} s' if first is None else f'frame {first}'} on ({report})")
        if frames is not None:
            report.missing = frames - pictures.count
        return Reading(pictures.stacked(), rate, report)


def settled(make: Callable[[stream], T], source: Source, **asked: Any) -> T:
    """The result of `make` for a `stream` of the source, or, if that stream has faults that its seek may explain, for a stream from the
    first packet on. If the faults of the two differ, the file is always read from the first packet from then on."""
    shown = stream(source, **asked)
    try:
        made = make(shown)
        if not shown.doubtful:
            return made
        del made
    except ValueError:
        if not shown.sought:
            raise
    finally:
        shown.close()
    way = WAYS.of(source)
    WAYS.note(source, Way.DECODE)
    again = stream(source, **asked)
    try:
        return make(again)
    finally:
        again.close()
        if again.report.faults == shown.report.faults:
            WAYS.note(source, way)


class stream:
    """Iterates over a video's frames as `Shown`, one at a time, as `PyAVReader.read` does; `report` is kept up to date.

    `fps` is the rate of the result. `sought`: not all frames before the start were decoded.
    """

    def __init__(
        self,
        source: Source,
        *,
        start: float = 0.0,
        first: int | None = None,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        limits: Limits,
    ) -> None:
        self.report, self.sought = ReadReport(), False
        self._source, self._name = source, named(source, name)
        self._head: VideoFrame | None = None
        self._opened: AbstractContextManager[Opened | pictures.Opened] | None = None
        self._place: Opened | pictures.Opened | None = None
        self.info = self._open(limits)
        self.fps = fps or self.info.fps
        try:
            if fps is not None and fps > self.info.fps and not self._pictured():
                self._measure(limits)
            check_rate(fps, self.info, self._name)
            self._frames = self._generate(start, first, fps, size, limits)
        except BaseException:
            self.close()
            raise

    def _open(self, limits: Limits) -> VideoInfo:
        """Open the file, again if it is open."""
        self.close()
        self._opened = (pictures.opened if pictures.is_picture(self._source) else opened)(self._source, self._name, limits)
        self._place = self._opened.__enter__()
        return self._place[2]

    def _pictured(self) -> bool:
        return self._place is not None and isinstance(self._place[0], pictures.OpenedImage)

    def _measure(self, limits: Limits) -> None:
        """Take the rate from the packets, as `probe` does: headers include how long the last frame of a recording lasts."""
        container, video = self._there()
        with refused(self._name):
            self.info = replace(self.info, fps=measured(container, video, self.info, walked(container, video, self.info, limits)).fps)
        self._open(limits)

    def _there(self) -> tuple[InputContainer, VideoStream]:
        assert self._place is not None
        container, video, _ = self._place
        assert not isinstance(container, pictures.OpenedImage)
        assert video is not None
        return container, video

    def __iter__(self) -> Iterator[Shown]:
        return self

    def __next__(self) -> Shown:
        frame, convert, time, good = next(self.undecided())
        try:
            with refused(self._name):
                return Shown(convert(frame), time, good)
        except BaseException:
            self.close()
            raise

    def undecided(self) -> Iterator[tuple[VideoFrame, Converter, float, bool]]:
        """The frames before conversion to RGB, with their converters, their times, and whether they are good."""
        while True:
            try:
                with refused(self._name):
                    found = next(self._frames, None)
            except BaseException:
                self.close()
                raise
            if found is None:
                self.close()
                return
            yield found

    @property
    def doubtful(self) -> bool:
        """Whether the faults so far may come from not decoding all frames before the start."""
        return self.sought and (any(self.report.faults) or not self.report.decoded)

    def close(self) -> None:
        """Close the file, as the end of the iteration does."""
        opened, self._opened, self._place = self._opened, None, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _generate(
        self, start: float, first: int | None, fps: float | None, size: tuple[int, int] | None, limits: Limits
    ) -> Iterator[tuple[VideoFrame, Converter, float, bool]]:
        step = 1 / self.info.fps
        if self._place is not None and isinstance(self._place[0], pictures.OpenedImage):
            start, over = first / self.info.fps if first else start, 0
            earliest = start - step / 2
            timed = (_Timed(frame, time, lost=False, whole=True) for time, frame in pictures.shown(self._place[0], self._name, self.report))
        else:
            start, earliest, over = self._begin(start, first, limits)
            timed = self._decoded(start, earliest, fps, limits)
            found = next(timed, None)
            if found is None:
                return
            self.info = upright(self.info, self._head or found.frame, self._there()[1])
            timed = chain([found], timed)
        convert = Converter(self.info, size)
        asked = islice(_all(timed, earliest, start), over, None) if fps is None else _nearest(timed, start, fps, step * LAST_FOR)
        for target, one in asked:
            # By number every frame counts; at a rate, every target that another frame would have been nearer to.
            near = 0.0 if first is not None else LAST_FOR * step + _SAME if fps is not None else 1.5 * step + HOLE
            late = one.lost and abs(one.time - target) > near
            self.report.late += late
            yield one.frame, convert, one.time, one.whole and not late

    def _begin(self, start: float, first: int | None, limits: Limits) -> tuple[float, float, int]:
        """The time of the first frame asked for, a time before which no frame is wanted, and how many frames between are unwanted."""
        if not first:
            return (0.0, -inf, 0) if first == 0 else (start, start - 0.5 / self.info.fps, 0)
        container, video = self._there()
        times = walked(container, video, self.info, limits, most=first + AHEAD).timeline.times
        self._open(limits)
        if first >= len(times):
            raise ValueError(f"{self._name} has no frame that decodes from frame {first} on: it has {counted(len(times), 'frame')}")
        earliest = float(times[first - 1] + times[first]) / 2
        return float(times[first]), earliest, first - int(np.searchsorted(times, earliest))

    def _decoded(self, start: float, earliest: float, fps: float | None, limits: Limits) -> Iterator[_Timed]:
        """Frames with their times, from one at or before `earliest` on; a packet that the decoder refuses is counted and skipped."""
        packets, clock, entries = self._packets(earliest, limits)
        _, video = self._there()
        told: Iterator[Packet] = walked_to(packets, entries, clock, earliest) if self._walks else packets
        if fps is not None and fps < 0.75 * self.info.fps and self.info.codec in CODECS and not clock.by_place:
            told = FrameSkipper(start, fps, clock.of).marked(told, video)
        anew, groups = True, deque[tuple[float, int]](maxlen=_GROUPS)
        for packet in told:
            self.report.errors += packet.pts in packets.torn
            if packet in entries:
                self.report.errors = self.report.corrupt = 0  # no frame that is read refers to earlier packets
                clock.begin(packet, anew=anew)
                groups.clear()
            if entries.begins(packet):
                groups.append((clock.of(packet) or 0.0, self.report.errors + self.report.corrupt))
            anew = False
            self.report.errors += packet.is_corrupt
            if video.codec_context.skip_frame == "DEFAULT":
                clock.sent(packet)
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                clock.refused(packet)
                self.report.errors += not clock.leads(packet)
                continue
            for frame in frames:
                self.report.decoded += 1
                if self.report.decoded > limits.frames:
                    raise ValueError(f"more than {limits.frames} frames decode, whatever the header says; raise limits.frames")
                # Unwanted frames count too: the wanted ones may refer to them.
                self.report.corrupt += frame.is_corrupt and not clock.leads(frame)
                time, lost = clock.shown(frame)
                before = next((faults for begins, faults in reversed(groups) if begins <= time + _SAME), 0)
                yield _Timed(frame, time, lost, self.report.errors + self.report.corrupt == before)
        self.report.errors += packets.broken

    def _packets(self, earliest: float, limits: Limits) -> tuple[Packets, PacketTimes, Entries]:
        """The packets from the file's first one on, or from where its index leads; the clock for their times; the entry points in them."""
        packets, clock, entries = self._anew(earliest)
        way, self._walks = WAYS.of(self._source) if earliest > ABOVE else Way.DECODE, False
        if way is Way.DECODE:
            return packets, clock, entries
        container, video = self._there()
        self._head, self.sought = head(packets, video), True
        indexed = container.format.name.startswith(INDEXED)
        if indexed and way is Way.INDEX:
            found = led(container, video, clock, entries, earliest)
            if found is not None:
                return found, clock, entries
            WAYS.note(self._source, Way.WALK)
            self._open(limits)  # after a wrong seek, another seek may not lead back to the first packet
            packets, clock, entries = self._anew(earliest)
            self._head = head(packets, self._there()[1])
        self._walks = True
        return packets, clock, entries

    def _anew(self, earliest: float) -> tuple[Packets, PacketTimes, Entries]:
        """The packets from the first one on at which decoding can begin, with their clock and entry points."""
        container, video = self._there()
        packets = Packets(container, video)
        clock = PacketTimes(container, video, fps=self.info.fps, origin=opening(container, packets, video, self.info.codec).origin)
        packets.clock = clock
        return packets, clock, Entries(video, self.info.codec, clock, earliest)


class _Timed(NamedTuple):
    """A decoded frame, its time, whether a frame due before it is lost, and whether no fault occurred since its keyframe."""

    frame: VideoFrame
    time: float
    lost: bool
    whole: bool


def _all(frames: Iterator[_Timed], earliest: float, start: float) -> Iterator[tuple[float, _Timed]]:
    """(the time since which a frame was due, the frame) for all frames from `earliest` on."""
    before = start
    for now in frames:
        if now.time >= earliest:
            yield before, now
        before = max(start, now.time)


def _nearest(frames: Iterator[_Timed], start: float, fps: float, last_for: float) -> Iterator[tuple[float, _Timed]]:
    """(target time, the frame nearest to it) for targets start, start + 1/fps, ...; the last frame counts for `last_for` seconds."""
    number, previous, lost = 0, None, False
    for now in frames:
        while previous is not None and (target := start + number / fps) <= (previous.time + now.time) / 2 + 1e-9:
            yield target, previous._replace(lost=lost if target < previous.time else now.lost)
            number += 1
        previous, lost = now, now.lost
    while previous is not None and (target := start + number / fps) <= previous.time + last_for:
        yield target, previous._replace(lost=lost and target < previous.time)
        number += 1
