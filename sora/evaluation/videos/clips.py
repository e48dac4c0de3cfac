"""The clips taken of a set of videos: which frames of which video, by a policy that is part of a protocol.

Nothing is made to fit: a video that is shorter than a clip, or of another size or rate than the rest, is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sora.evaluation.videos.sets import Shape, Videos
from sora.patches.geometry import Geometry
from sora.system import files as storage
from sora.system.draws import generator, sample_id
from sora.system.terminal import counted

STARTS = {
    "first": lambda room, key, seed: 0,
    "middle": lambda room, key, seed: room // 2,
    "random": lambda room, key, seed: int(generator("clip", seed=seed, epoch=0, sample=sample_id(key)).integers(room + 1)),
}
# Several windows of a video: where they start. room: of frames that none of them covers if they follow one another; span: of one.
SEVERAL = {
    "first": lambda room, span, count, key, seed: [span * place for place in range(count)],
    "middle": lambda room, span, count, key, seed: [room // 2 + span * place for place in range(count)],
    "random": lambda room, span, count, key, seed: sorted(
        generator("clip", seed=seed, epoch=0, sample=sample_id(key)).choice(room + span * (count - 1) + 1, count, replace=False).tolist()
    ),
}
CHOICES = {
    "first": lambda videos, number, seed: number,
    "spread": lambda videos, number, seed: _golden(number),
    "random": lambda videos, number, seed: (_drawn(videos.identity(number), seed), videos.name(number)),
}
SHORT = ("refuse", "leave_out")
_READ = "by number"  # how a clip's frames are found: other pixels for some files than by time, as once


@dataclass(frozen=True, kw_only=True)
class ClipPolicy:
    """How clips are taken of videos.

    frames: of a clip; None: all that a video has. stride: every how-manyth frame of the video. windows: how many clips of each video.
    start: where in it, first, middle or random; several windows follow one another, from the first frame or in the middle, or are drawn
    at places that differ, and may overlap. short: what happens to a video that is too short for its clips: refuse, or leave_out. choose:
    which videos where fewer are wanted than there are: the first by name; those spread over all, whatever the seed, of which fewer are a
    part of more; or random. Random draws follow from the seed and a video's bytes: neither its name nor the order of the others moves
    them.
    """

    frames: int | None
    stride: int
    windows: int
    start: str
    short: str
    choose: str

    def __post_init__(self) -> None:
        for key, known in (("start", tuple(STARTS)), ("short", SHORT), ("choose", tuple(CHOICES))):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)}: choose from {', '.join(known)}")
        if self.stride < 1 or (self.frames is not None and self.frames < 1):
            raise ValueError(f"frames={self.frames} and stride={self.stride}: both are at least 1")
        if self.windows < 1 or (self.windows > 1 and self.frames is None):
            told = "give at least 1" if self.windows < 1 else "whole videos have one; set frames to their length"
            raise ValueError(f"windows={self.windows}: {told}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ClipWindow:
    """One clip: `frames` of them from number `first` of a video on, every `stride`th."""

    video: int
    first: int
    frames: int


@dataclass(frozen=True)
class Clips:
    """Clips of a set of videos, in a fixed order. sides: height and width are cut to multiples of them, at the bottom and the right."""

    videos: Videos
    policy: ClipPolicy
    taken: tuple[ClipWindow, ...]
    sides: tuple[int, int] = (1, 1)

    def __len__(self) -> int:
        return len(self.taken)

    def name(self, number: int) -> str:
        """Of its video; of several windows also the frame that it begins with."""
        clip = self.taken[number]
        return self.videos.name(clip.video) + (f"@{clip.first}" if self.policy.windows > 1 else "")

    def video(self, number: int) -> str:
        """What its video is known by, whatever it is called: the same for all windows of one."""
        return self.videos.identity(self.taken[number].video)

    def prompt(self, number: int) -> str | None:
        return self.videos.prompt(self.taken[number].video)

    def frames(self, number: int) -> int:
        return self.taken[number].frames

    def shape(self, number: int) -> Shape:
        """Its sides, and the rate at which its frames follow one another: the video's over the stride."""
        shape, (rows, columns) = self.videos.shape(self.taken[number].video), self.sides
        return Shape(shape.height // rows * rows, shape.width // columns * columns, shape.fps / self.policy.stride)

    def key(self, number: int) -> str:
        """Different for clips of different pixels: of the video's bytes, its frames, and what decodes them."""
        clip, whole, kept = self.taken[number], self.videos.shape(self.taken[number].video), self.shape(number)
        cut = "" if (whole.height, whole.width) == (kept.height, kept.width) else f":{kept.height}x{kept.width}"
        return f"{self.videos.identity(clip.video)}:{clip.first}:{clip.frames}:{self.policy.stride}:{_READ}:{self.videos.decoder}{cut}"

    def read(self, number: int) -> UInt8[np.ndarray, "T H W 3"]:
        clip = self.taken[number]
        found, shape = self.videos.read(clip.video, clip.first, (clip.frames - 1) * self.policy.stride + 1), self.shape(number)
        return np.ascontiguousarray(found[:: self.policy.stride, : shape.height, : shape.width])

    @cached_property
    def shapes(self) -> dict[str, int]:
        """How many clips are of each length, size and rate."""
        found: dict[str, int] = {}
        for number in range(len(self)):
            told = f"{self.frames(number)}x{self.shape(number)}"
            found[told] = found.get(told, 0) + 1
        return dict(sorted(found.items()))

    def about(self) -> dict[str, Any]:
        """For a protocol."""
        rates = sorted({round(self.shape(number).fps, 2) for number in range(len(self))})
        return {**self.policy.to_json(), "n": len(self), "shapes": self.shapes, "rates": rates}

    def taken_sha256(self, *, sets: int = 1) -> str:
        """Which clips these are: a hash of the videos' bytes and of the frames taken of each, whatever the files are called. sets: that the
        clips fall into in turn, and which of them each is in counts then."""
        picked = [f"{self.videos.identity(clip.video)}:{clip.first}:{clip.frames}:{self.policy.stride}" for clip in self.taken]
        return storage.text_hash("\n\n".join("\n".join(sorted(picked[place::sets])) for place in range(sets)))

    def by_names(self, *, sets: int = 1) -> str | None:
        """A hash of the files' names, in their order, where these say which clips are taken or which set each is in; else None."""
        names = [self.name(number) for number in range(len(self))]
        every = {clip.video for clip in self.taken} == set(range(len(self.videos)))
        return None if sets == 1 and (every or self.policy.choose == "random") else storage.text_hash("\n".join(names))

    def codecs(self) -> list[str]:
        """Of all videos that clips are taken of, where they are looked up."""
        return sorted({codec for clip in self.taken if (codec := self.videos.codec(clip.video)) is not None})


def take(videos: Videos, policy: ClipPolicy, *, n: int | None, seed: int, named: str) -> Clips:
    """The clips of n videos, or of every one. named: the side in errors, as the command line calls it.

    Raises ValueError for a video that is too short, unless those are left out, and for fewer videos than n: none is taken twice.
    """
    if n is not None and n < 1:
        raise ValueError(f"{named}: {counted(n, 'clip is', 'clips are')} wanted; give at least 1, or null for all")
    several = f" of {policy.windows} windows of" if policy.windows > 1 else " of"
    order = range(len(videos))
    if n is not None:
        order = sorted(order, key=lambda number: CHOICES[policy.choose](videos, number, seed))
    taken: list[list[ClipWindow]] = []
    left_out = 0
    for number in order:
        if len(taken) == n:
            break
        there = videos.frames(number)
        frames = policy.frames or 1 + (there - 1) // policy.stride
        span = (frames - 1) * policy.stride + 1
        room = there - span * policy.windows
        if room < 0 and policy.short == "refuse":
            raise ValueError(
                f"{named}: {videos.name(number)} of {videos.place} has {counted(there, 'frame')}, a clip{several} {frames} at stride "
                f"{policy.stride} needs {span * policy.windows}; set {named}.frames lower, or {named}.short=leave_out"
            )
        if room < 0:
            left_out += 1
            continue
        key = videos.identity(number)
        starts = [STARTS[policy.start](room, key, seed)]
        if policy.windows > 1:
            starts = SEVERAL[policy.start](room, span, policy.windows, key, seed)
        taken.append([ClipWindow(number, start, frames) for start in starts])
    if n is not None and len(taken) < n:
        short = f" ({left_out} more are too short for a clip)" if left_out else ""
        raise ValueError(
            f"{named}: {counted(n, 'clip is', 'clips are')} wanted and {videos.place} has {counted(len(taken), 'video')}{short}; "
            "none is taken twice: lower the number"
        )
    return Clips(videos, policy, tuple(clip for clips in sorted(taken, key=lambda clips: clips[0].video) for clip in clips))


def only(clips: Clips, wanted: Sequence[tuple[int, ...]]) -> Clips:
    """Those of certain (frames, height, width), or of certain (frames,)."""
    kept = set(wanted)
    found = []
    for number, clip in enumerate(clips.taken):
        kind = (clip.frames, clips.shape(number).height, clips.shape(number).width)
        if kind in kept or kind[:1] in kept:
            found.append(clip)
    return replace(clips, taken=tuple(found))


def fitted(clips: Clips, geometry: Geometry) -> Clips:
    """The largest part of each clip, from its start and its upper left corner, that a network takes; clips of a set length keep it. Those
    that are smaller than a patch are left out, as they are where clips are encoded."""
    found = []
    for number, clip in enumerate(clips.taken):
        shape, set_length = clips.shape(number), clips.policy.frames is not None
        if geometry.holds(geometry.least_frames(clip.frames) if set_length else clip.frames, shape.height, shape.width):
            found.append(clip if set_length else replace(clip, frames=geometry.most_frames(clip.frames)))
    return replace(clips, taken=tuple(found), sides=geometry.block)


def spread(total: int) -> list[int]:
    """The numbers below `total` in an order whose every beginning is spread over all of them."""
    return sorted(range(total), key=_golden)


def refuse_mixed(sides: Mapping[str, Clips], *, sized: bool, rates: bool) -> None:
    """Raise ValueError, naming a video of each kind, unless all clips of all sides are of one length, size and rate.

    sized: all are brought to one size afterwards, so sizes may differ. rates: whether rates must agree; those of single frames are none.
    """
    seen: dict[tuple[Any, ...], str] = {}
    for side, clips in sides.items():
        for number in range(len(clips)):
            frames, shape = clips.frames(number), clips.shape(number)
            kind = (frames, None if sized else (shape.height, shape.width), round(shape.fps, 2) if rates and frames > 1 else None)
            seen.setdefault(kind, f"{clips.name(number)} of {clips.videos.place} ({side}: {counted(frames, 'frame')} of {shape.told})")
    if len(seen) > 1:
        raise ValueError(
            f"clips of several lengths, sizes or rates: {' and '.join(list(seen.values())[:2])}. One distance compares one kind, and "
            "nothing is resampled unasked: set real.frames and generated.frames for the length, size=WIDTHxHEIGHT for the size, "
            "and the strides, or rates=any, for the rate"
        )


def _golden(number: int) -> int:
    """The place of a video in an order whose every beginning is spread over all: turns of the golden ratio, in 64 bits. It falls in step
    with no period that a dataset's order may have, as every second or every eighth clip would."""
    return number * 0x9E3779B97F4A7C15 % (1 << 64)


def _drawn(identity: str, seed: int) -> str:
    return hashlib.sha256(json.dumps([identity, seed]).encode()).hexdigest()


def size_of(clips: Clips, number: int) -> dict[str, int]:
    """Of a clip, as a row of scores says it."""
    shape = clips.shape(number)
    return {"frames": clips.frames(number), "height": shape.height, "width": shape.width}


def written(folder: Path, clips: Clips, numbers: Sequence[int]) -> list[Path]:
    """Some of the clips as videos that players show, in the order of `numbers`; without a last row or column that would make a side odd."""
    from sora.generation.samples import enlarged
    from sora.video.files import write

    paths = []
    for place, number in enumerate(numbers):
        paths.append(folder / f"{place:04d}.mp4")
        frames = enlarged(clips.read(number))
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        write(paths[-1], even, clips.shape(number).fps, lossless=False)
    return paths
