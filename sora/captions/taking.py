"""Takes the frames of a clip that a captioner is shown: the first, the last, those that differ most, and one every few seconds at least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from sora.captions.frames import FrameTaking
from sora.data.index.index import Index
from sora.video.files import LIMITS, Shown, settled, stream

HEIGHT, WIDTH = 18, 32  # of the pictures by which frames are compared
_TIME = 2.0  # of 255 levels: what the largest distance in time counts beside the difference of pictures
_SAME = 1.5  # of 255 levels: pictures that differ by less show the same


class TakenFrames(NamedTuple):
    """Frames of a stretch of a clip. start, end: the stretch, in seconds from the clip's first frame; times: of its frames, likewise."""

    start: float
    end: float
    times: tuple[float, ...]
    frames: UInt8[np.ndarray, "F H W 3"]


class TakeFrames:
    """Function of (row, content) to the frames of that clip of a dataset, one `TakenFrames` for each stretch. even: at even times.

    content: the clip's bytes; None where they can be read here. It runs in a guarded process.
    """

    def __init__(self, index: Index, taking: FrameTaking, *, even: bool) -> None:
        self.index, self.taking, self.even = index, taking, even

    def __call__(self, item: tuple[int, bytes | None]) -> list[TakenFrames]:
        row, content = item
        index = self.index
        content = index.read_member(row) if content is None else content
        fps, count = float(index.fps[row]), int(index.frames[row])
        seconds = count / fps if count > 1 else 0.0
        size = self.taking.size(int(index.heights[row]), int(index.widths[row]))
        make = partial(taken, taking=self.taking, seconds=seconds, even=self.even)
        return settled(make, content, size=size, limits=LIMITS, name=f"clip {index.key(row)}")


def taken(shown: stream, *, taking: FrameTaking, seconds: float, even: bool) -> list[TakenFrames]:
    """The frames of each stretch of a clip of `seconds`. Raises ValueError if a stretch has no frame, or the clip is damaged."""
    windows, found = taking.windows(seconds), list[TakenFrames]()
    held = _Held(taking)
    for frame in shown:
        if not frame.good:
            raise ValueError(f"its frame at {frame.time:.2f} s is damaged, or follows a loss ({shown.report})")
        while len(found) + 1 < len(windows) and frame.time >= windows[len(found)][1] - 1e-6:
            found.append(held.stretch(*windows[len(found)], even=even))
        held.add(frame)
    found.append(held.stretch(*windows[-1], even=even))
    if len(found) < len(windows):
        raise ValueError(f"it ends at {found[-1].times[-1]:.2f} s, and its index says {seconds:.2f} s")
    return found


class _Held:
    """The frames of a stretch that may be taken: at most `rate` a second, and the last one whatever its time."""

    def __init__(self, taking: FrameTaking) -> None:
        self._taking, self._room = taking, max(64, 4 * taking.most)
        self._frames: list[Shown] = []
        self._last: Shown | None = None
        self._step = 1.0 / taking.rate

    def add(self, frame: Shown) -> None:
        self._last = frame
        if not self._frames or frame.time >= self._frames[-1].time + self._step - 1e-6:
            self._frames.append(Shown(frame.pixels.copy(), frame.time, True))
        if len(self._frames) > self._room:  # a long clip that is not parted: half as many a second from here on
            self._frames, self._step = self._frames[::2], 2 * self._step

    def stretch(self, start: float, end: float, *, even: bool) -> TakenFrames:
        """The frames taken of what was added since the last call."""
        if self._last is None:
            raise ValueError(f"it has no frame from {start:.2f} to {end:.2f} s")
        if self._last.time > self._frames[-1].time:
            self._frames.append(Shown(self._last.pixels.copy(), self._last.time, True))
        times = np.array([frame.time for frame in self._frames])
        if even:
            chosen = evenly(times, count=self._taking.count)
        else:
            chosen = differing(small([frame.pixels for frame in self._frames]), times, taking=self._taking)
        frames = np.stack([self._frames[place].pixels for place in chosen])
        found = TakenFrames(start, end, tuple(round(float(times[place]), 3) for place in chosen), frames)
        self._frames, self._last, self._step = [], None, 1.0 / self._taking.rate
        return found


def small(frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Float[np.ndarray, "F P"]:
    """Frames as small pictures, each as one row of levels."""
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(one).resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32).ravel() for one in frames])


def evenly(times: Float[np.ndarray, "N"], *, count: int) -> list[int]:
    """The places of the frames nearest to `count` even times, without repetitions, in order."""
    wanted = np.linspace(times[0], times[-1], count) if count > 1 else times[:1]
    return sorted({int(np.abs(times - time).argmin()) for time in wanted})


def differing(pictures: Float[np.ndarray, "N P"], times: Float[np.ndarray, "N"], *, taking: FrameTaking) -> list[int]:
    """The places of the frames to take, in order: the first, the last, one for each gap longer than `every_seconds`, and then the one that
    differs most from all taken ones, until there are `count` or none differs (farthest-point sampling, Gonzalez 1985).

    A function of its arguments alone: of equal ones the earliest is taken.
    """
    chosen = sorted({0, len(times) - 1})
    while len(chosen) < min(taking.most, len(times)) and (place := _in_gap(times, chosen, taking.every_seconds)) is not None:
        chosen = sorted([*chosen, place])
    length = max(float(times[-1] - times[0]), 1e-9)
    distance = partial(_distance, pictures, times / length * _TIME)
    nearest = np.min([distance(place) for place in chosen], axis=0)
    while len(chosen) < min(taking.count, len(times)):
        place = int(nearest.argmax())
        if nearest[place] < _SAME:
            break
        chosen = sorted([*chosen, place])
        nearest = np.minimum(nearest, distance(place))
    return chosen


def _distance(pictures: Float[np.ndarray, "N P"], moments: Float[np.ndarray, "N"], place: int) -> Float[np.ndarray, "N"]:
    found = np.abs(pictures - pictures[place]).mean(axis=1)
    return np.where(found < _SAME, found, found + np.abs(moments - moments[place]))


def _in_gap(times: Float[np.ndarray, "N"], chosen: Sequence[int], most: float) -> int | None:
    """The place of the frame nearest to the middle of the longest gap, if that is longer than `most` and has a frame in it."""
    gaps: Int[np.ndarray, "G"] = np.argsort(-np.diff(times[list(chosen)]), kind="stable")
    for gap in gaps.tolist():
        first, last = chosen[gap], chosen[gap + 1]
        if times[last] - times[first] <= most + 1e-6:
            return None
        if last > first + 1:
            inside = times[first + 1 : last]
            return first + 1 + int(np.abs(inside - (times[first] + times[last]) / 2).argmin())
    return None
