"""Takes clips from a set of videos, by a policy that is part of the protocol.

Nothing is made to fit: a video that is shorter than a clip, or has another size or rate than the rest, is an error that names it.
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
# Starts of several windows of a video. room: frames that remain if the windows follow one another; span: frames of one window.
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
_READ = "by number"  # frames are found by number; by time, as formerly, some files give other pixels


@dataclass(frozen=True, kw_only=True)
class ClipPolicy:
    """How clips are taken from videos.

    frames: of a clip; None for the whole video. stride: distance between frames of the video. windows: number of clips of each video.
    start: where in the video: first, middle or random. Several windows follow one another from the first frame or around the middle, or
    start at different random places and may overlap. short: for a video that is too short: refuse, or leave_out. choose: which videos, if
    fewer are wanted than there are: the first by name; spread over all, independent of the seed, where fewer are a part of more; or random.
    Random choices depend on the seed and a video's bytes, not on its name or on the order of the videos.
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
    """One clip: `frames` frames of a video from number `first` on, every `stride`th."""

    video: int
    first: int
    frames: int


@dataclass(frozen=True)
class Clips:
    """Clips from a set of videos, in a fixed order. sides: height and width are cropped to multiples of these, at the bottom and the
    right."""

    videos: Videos
    policy: ClipPolicy
    taken: tuple[ClipWindow, ...]
    sides: tuple[int, int] = (1, 1)

    def __len__(self) -> int:
        return len(self.taken)

    def name(self, number: int) -> str:
        """The name of its video; with several windows, also the number of its first frame."""
        clip = self.taken[number]
        return self.videos.name(clip.video) + (f"@{clip.first}" if self.policy.windows > 1 else "")

    def video(self, number: int) -> str:
        """An identifier of its video that does not depend on file names; equal for all windows of a video."""
        return self.videos.identity(self.taken[number].video)

    def prompt(self, number: int) -> str | None:
        return self.videos.prompt(self.taken[number].video)

    def frames(self, number: int) -> int:
        return self.taken[number].frames

    def shape(self, number: int) -> Shape:
        """Its height and width, and its frame rate: the video's divided by the stride."""
        shape, (rows, columns) = self.videos.shape(self.taken[number].video), self.sides
        return Shape(shape.height // rows * rows, shape.width // columns * columns, shape.fps / self.policy.stride)

    def key(self, number: int) -> str:
        """A key that differs for clips with different pixels: from the video's bytes, the frames, and the decoder."""
        clip, whole, kept = self.taken[number], self.videos.shape(self.taken[number].video), self.shape(number)
        cut = "" if (whole.height, whole.width) == (kept.height, kept.width) else f":{kept.height}x{kept.width}"
        return f"{self.videos.identity(clip.video)}:{clip.first}:{clip.frames}:{self.policy.stride}:{_READ}:{self.videos.decoder}{cut}"

    def read(self, number: int) -> UInt8[np.ndarray, "T H W 3"]:
        clip = self.taken[number]
        found, shape = self.videos.read(clip.video, clip.first, (clip.frames - 1) * self.policy.stride + 1), self.shape(number)
        return np.ascontiguousarray(found[:: self.policy.stride, : shape.height, : shape.width])

    @cached_property
    def shapes(self) -> dict[str, int]:
        """The number of clips of each length, size and rate."""
        found: dict[str, int] = {}
        for number in range(len(self)):
            told = f"{self.frames(number)}x{self.shape(number)}"
            found[told] = found.get(told, 0) + 1
        return dict(sorted(found.items()))

    def about(self) -> dict[str, Any]:
        """The description for a protocol."""
        rates = sorted({round(self.shape(number).fps, 2) for number in range(len(self))})
        return {**self.policy.to_json(), "n": len(self), "shapes": self.shapes, "rates": rates}

    def taken_sha256(self, *, sets: int = 1) -> str:
        """A hash of which clips these are: of the videos' bytes and the frames taken, independent of file names. sets: number of sets that
        clips fall into in turn; with several, the set of each clip counts, too."""
        picked = [f"{self.videos.identity(clip.video)}:{clip.first}:{clip.frames}:{self.policy.stride}" for clip in self.taken]
        return storage.text_hash("\n\n".join("\n".join(sorted(picked[place::sets])) for place in range(sets)))

    def by_names(self, *, sets: int = 1) -> str | None:
        """A hash of the file names in order, if they decide which clips are taken or the set of each; else None."""
        names = [self.name(number) for number in range(len(self))]
        every = {clip.video for clip in self.taken} == set(range(len(self.videos)))
        return None if sets == 1 and (every or self.policy.choose == "random") else storage.text_hash("\n".join(names))

    def codecs(self) -> list[str]:
        """The codecs of all videos with clips, where they are known."""
        return sorted({codec for clip in self.taken if (codec := self.videos.codec(clip.video)) is not None})


def take(videos: Videos, policy: ClipPolicy, *, n: int | None, seed: int, named: str) -> Clips:
    """The clips of n videos, or of all. named: the side as on the command line, for messages.

    Raises ValueError for a video that is too short, unless these are left out, and for fewer than n videos: none is used twice.
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
    """The clips with one of the given (frames, height, width), or (frames,)."""
    kept = set(wanted)
    found = []
    for number, clip in enumerate(clips.taken):
        kind = (clip.frames, clips.shape(number).height, clips.shape(number).width)
        if kind in kept or kind[:1] in kept:
            found.append(clip)
    return replace(clips, taken=tuple(found))


def fitted(clips: Clips, geometry: Geometry) -> Clips:
    """The largest part of each clip, from its first frame and upper left corner, that a network takes; a set number of frames is kept.
    Clips smaller than a patch are left out, as in encoding."""
    found = []
    for number, clip in enumerate(clips.taken):
        shape, set_length = clips.shape(number), clips.policy.frames is not None
        if geometry.holds(geometry.least_frames(clip.frames) if set_length else clip.frames, shape.height, shape.width):
            found.append(clip if set_length else replace(clip, frames=geometry.most_frames(clip.frames)))
    return replace(clips, taken=tuple(found), sides=geometry.block)


def spread(total: int) -> list[int]:
    """The numbers below `total` in an order in which every beginning is spread over all of them."""
    return sorted(range(total), key=_golden)


def refuse_mixed(sides: Mapping[str, Clips], *, sized: bool, rates: bool) -> None:
    """Raise ValueError, naming a video of each kind, unless all clips on all sides have one length, size and rate.

    sized: all are resized to one size later, so sizes may differ. rates: whether rates must agree; single frames have none.
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
    """The position of a video in an order in which every beginning is spread over all: multiples of the golden ratio, in 64 bits. It has no
    period in common with a dataset's order, such as every second or every eighth clip."""
    return number * 0x9E3779B97F4A7C15 % (1 << 64)


def _drawn(identity: str, seed: int) -> str:
    return hashlib.sha256(json.dumps([identity, seed]).encode()).hexdigest()


def size_of(clips: Clips, number: int) -> dict[str, int]:
    """The size of a clip, as in a row of scores."""
    shape = clips.shape(number)
    return {"frames": clips.frames(number), "height": shape.height, "width": shape.width}


def written(folder: Path, clips: Clips, numbers: Sequence[int]) -> list[Path]:
    """Write the clips with these numbers as videos that players show; an odd last row or column is dropped. Returns the paths."""
    from sora.generation.samples import enlarged
    from sora.video.files import write

    paths = []
    for place, number in enumerate(numbers):
        paths.append(folder / f"{place:04d}.mp4")
        frames = enlarged(clips.read(number))
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        write(paths[-1], even, clips.shape(number).fps, lossless=False)
    return paths
