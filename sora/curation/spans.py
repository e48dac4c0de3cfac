"""Spans of a video's frames: the transitions between shots, the clips between them, and the protocol of what finds transitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

Fate = Literal["clip", "transition", "trimmed", "too short", "too long"]
SLACK = 1e-6  # seconds: times are sums of floating-point numbers


class Span(NamedTuple):
    """The frames `first` to `end` - 1 of a video, in display order."""

    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first


class Transition(NamedTuple):
    """A change of shot: frames `first` to `end` - 1 show parts of both shots. A hard cut has first == end, the new shot's first frame."""

    first: int
    end: int


@runtime_checkable
class CutDetector(Protocol):
    """The interface of a detector of shot changes."""

    def identity(self) -> str:
        """A text for everything that the result depends on besides the frames: the method, its settings, versions, hashes of weights."""
        ...

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) at which the detector takes the frames of a video of that size."""
        ...

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        """The transitions of a video, in order, from all its frames (RGB, of `size`). fps: its average rate."""
        ...


class Part(NamedTuple):
    """A span of a video, what becomes of its frames, and how long it lasts.

    fate: "clip", or why its frames are in none: they belong to a "transition", they are "trimmed" off the edge of a shot, the clip would be
    "too short", or a single frame lasts longer than a clip may, "too long".
    """

    span: Span
    fate: Fate
    seconds: float


def parts_of(
    times: Float64[np.ndarray, "frames"],
    transitions: Sequence[Transition],
    *,
    trim_frames: int,
    least_seconds: float,
    most_seconds: float | None,
) -> list[Part]:
    """The parts of a video, in order; every frame is in exactly one.

    times: of each frame, in seconds, rising; a frame lasts until the next, the last one for the median of these durations. transitions: in
    order and apart. trim_frames: left out on both sides of each transition; the video's own first and last frames stay. A shot that lasts
    longer than most_seconds (None: no limit) is cut into equal parts that do not: the fewest, or one more where frames do not fit. Clips
    shorter than least_seconds are refused.

    Raises:
        ValueError: the settings contradict each other, times do not rise, or transitions overlap or lie beyond the video.
    """
    check_lengths(trim_frames=trim_frames, least_seconds=least_seconds, most_seconds=most_seconds)
    edges = _edges(np.asarray(times, np.float64))
    frames = len(edges) - 1
    _check(transitions, frames)

    def part(first: int, end: int, fate: Fate) -> Part:
        return Part(Span(first, end), fate, float(edges[end] - edges[first]))

    found: list[Part] = []
    starts, ends = [0, *(each.end for each in transitions)], [*(each.first for each in transitions), frames]
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        found += [] if place == 0 else [part(*transitions[place - 1], "transition")]
        first = start + (trim_frames if place > 0 else 0)
        stop = end - (trim_frames if place < len(transitions) else 0)
        if first >= stop:  # trimming takes all of it
            found += [part(start, end, "too short")]
            continue
        found += [part(start, first, "trimmed")]
        for one, two in pairwise(_cut(edges, first, stop, most_seconds)):
            lasts = edges[two] - edges[one]
            long = most_seconds is not None and lasts > most_seconds + SLACK
            found += [part(one, two, "too long" if long else "too short" if lasts < least_seconds - SLACK else "clip")]
        found += [part(stop, end, "trimmed")]
    return [each for each in found if len(each.span)]


def check_lengths(*, trim_frames: int, least_seconds: float, most_seconds: float | None) -> None:
    """Raise ValueError if no clip can fit these settings of `parts_of`."""
    if trim_frames < 0:
        raise ValueError(f"trim_frames={trim_frames} must be 0 or more frames on each side of a cut")
    if not least_seconds >= 0:
        raise ValueError(f"least_seconds={least_seconds} must be 0 or more")
    if most_seconds is not None and not most_seconds >= max(least_seconds, SLACK):
        raise ValueError(
            f"most_seconds={most_seconds} is less than least_seconds={least_seconds}, so every clip is refused; raise it, or set it to "
            "null for no limit"
        )


def _edges(times: Float64[np.ndarray, "frames"]) -> Float64[np.ndarray, "frames_and_end"]:
    """The time at which each frame begins, and that at which the last one ends."""
    if times.ndim != 1 or len(times) == 0 or not np.isfinite(times).all() or (len(times) > 1 and np.diff(times).min() <= 0):
        raise ValueError(f"times of shape {times.shape} must be one finite number a frame, each above the one before")
    last = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return np.append(times, times[-1] + last)


def _check(transitions: Sequence[Transition], frames: int) -> None:
    """Raise ValueError unless transitions are in order, apart and within the video."""
    before = 0
    for each in transitions:
        if not before <= each.first <= each.end <= frames:
            raise ValueError(
                f"a transition over frames {each.first} to {each.end} follows one that ends at {before}, in a video of {frames} frames; "
                "they must be in order, apart and within the video"
            )
        before = each.end


def _cut(edges: Float64[np.ndarray, "frames_and_end"], first: int, end: int, most: float | None) -> list[int]:
    """The frames at which the clips of a shot begin, and its end: none lasts longer than `most` seconds unless one frame does."""
    lasts = float(edges[end] - edges[first])
    if most is None or lasts <= most + SLACK:
        return [first, end]
    fewest = int(np.ceil((lasts - SLACK) / most))
    for count in (fewest, fewest + 1):  # where frames are short, one more part makes up for what rounding to them adds
        wanted = edges[first] + lasts * np.arange(1, count) / count
        after = np.searchsorted(edges, wanted)
        nearest = np.where(wanted - edges[after - 1] < edges[after] - wanted, after - 1, after)
        cuts = [first, *map(int, nearest), end]
        if max(edges[two] - edges[one] for one, two in pairwise(cuts)) <= most + SLACK:
            return cuts
    cuts = [first]
    while cuts[-1] < end:  # frames last almost as long as clips may: as many in each as fit
        fits = int(np.searchsorted(edges, edges[cuts[-1]] + most + SLACK, side="right")) - 1
        cuts.append(min(max(fits, cuts[-1] + 1), end))
    return cuts
