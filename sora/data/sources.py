"""Where clips come from: a folder of anybody's videos, or the built-in world. Both end as encoded clips with what is known of them.

A source says what its units of work are; `make` turns a unit into clips in any process. Units and their clips are in one fixed
order, so the dataset does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b, sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from sora.data.clip_texts import CaptionWords
from sora.data.index import Caption, ClipFacts
from sora.data.sidecars import Sidecars
from sora.data.video import LIMITS, VideoInfo, encode, probe, stream
from sora.data.workers import Done

if TYPE_CHECKING:
    from sora.data.world.world import World

SUFFIXES = (".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi", ".ogv", ".mpg", ".mpeg", ".ts", ".flv", ".gif")
_WORLD_UNIT = 16  # clips
_FOLDER_UNIT = 8  # windows


class Made(NamedTuple):
    """A clip ready for a shard."""

    facts: ClipFacts
    media: bytes


class Refused(NamedTuple):
    """A video, or a stretch of one, that gives no clip."""

    source: str
    start: float
    reason: str


Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Done]]


@dataclass
class Job:
    """Units of work, the function that makes clips of one, how many clips to expect, and what was refused beforehand.

    notes: for report.json. told: for the last line of the command.
    """

    units: Sequence[Any]
    make: Callable[[Any], list[Made | Refused]]
    clips: int
    name_of: Callable[[Any], str]
    licence: str
    most: int | None = None  # clips, whatever the units give
    refused: list[Refused] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


@runtime_checkable
class Source(Protocol):
    """What `sora prepare` asks of a source: its job. `run` maps a function over items in guarded processes, in order.

    captions: a table of them. words: how files with captions are found and read.
    """

    def job(self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run) -> Job: ...


class WorldSource:
    """Clips of the built-in world: `count` for training and `heldout` of combinations that training never shows."""

    def __init__(self, *, world: World, heldout: int, lossless: bool, licence: str):
        self.world, self.heldout, self.lossless, self.licence = world, heldout, lossless, licence
        if heldout < 0:
            raise ValueError(f"source.heldout is {heldout}; give 0 or more clips")

    def job(self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run) -> Job:
        if folder is not None or captions is not None:
            raise ValueError("source=world takes no input and no captions: it draws its own; use source=folder for videos")
        if not count or count < 1:
            raise ValueError(f"source=world with count={count} makes no clips; set count, such as count=3000")
        units = [
            (split, first, min(first + _WORLD_UNIT, clips))
            for split, clips in (("train", count), ("heldout", self.heldout))
            for first in range(0, clips, _WORLD_UNIT)
        ]
        return Job(units, self._make, count + self.heldout, lambda unit: f"world {unit}", self.licence)

    def _make(self, unit: tuple[str, int, int]) -> list[Made | Refused]:
        split, first, last = unit
        return [self._clip(split, index) for index in range(first, last)]

    def _clip(self, split: str, index: int) -> Made:
        clip = self.world.clip(index, split=split)  # pyright: ignore[reportArgumentType]
        frames, height, width, _ = clip.frames.shape
        facts = ClipFacts(
            key=clip.key,
            frames=frames,
            fps=clip.fps,
            height=height,
            width=width,
            captions=tuple(Caption(kind, text, "world") for kind, text in clip.captions.items()),
            split=split,
            source="world",
            extra={"facts": asdict(clip.facts), "truth": clip.truth},
        )
        return Made(facts, encode(clip.frames, clip.fps, lossless=self.lossless))


class Windows(NamedTuple):
    """A unit of a folder: windows `first` to `last` - 1 of one video, at `fps` and (H, W) `size`."""

    video: str
    captions: tuple[Caption, ...]
    fps: float
    size: tuple[int, int]
    first: int
    last: int


class FolderSource:
    """Windows of the videos in a folder and its subfolders, one after another in time, nothing overlapping.

    fps: at most this rate (slower videos keep their own; null: all keep their own). frames: of a window; the last one of a video may
    be shorter, 1 + k * stride_time and at least `min_frames`. size: the short side in pixels that larger videos are scaled down
    to (null: none are). multiple: sides are multiples of it; what stands over is cut off evenly. windows_per_video: at most
    (null: all). held_out: share of the videos (held_out_by=video) or of the windows (held_out_by=window) that training does
    not see, chosen by the hash of their names, at least one if the share is not 0. leave_out: videos that are not wanted, as patterns of
    their paths in the folder. lossless: RGB without loss, else H.264 at crf 18.
    """

    def __init__(
        self,
        *,
        fps: float | None,
        frames: int,
        min_frames: int,
        stride_time: int,
        size: int | None,
        multiple: int,
        windows_per_video: int | None,
        held_out: float,
        held_out_by: str,
        leave_out: Sequence[str],
        lossless: bool,
        licence: str,
    ):
        self.leave_out = tuple(leave_out)
        self.fps, self.frames, self.min_frames, self.stride_time = fps, frames, min_frames, stride_time
        self.size, self.multiple, self.windows_per_video = size, multiple, windows_per_video
        self.held_out, self.held_out_by, self.lossless, self.licence = held_out, held_out_by, lossless, licence
        if frames < 1 or min_frames < 1 or stride_time < 1 or (frames - 1) % stride_time:
            near = 1 + round(frames / max(1, stride_time)) * max(1, stride_time)
            raise ValueError(f"source.frames={frames} is not 1 + k x source.stride_time={stride_time}; use {near}")
        if multiple < 1 or (not lossless and multiple % 2):
            raise ValueError(f"source.multiple={multiple}: sides of 4:2:0 video are even; use a multiple of 2 or source.lossless=true")
        if not 0 <= held_out < 1 or held_out_by not in ("video", "window"):
            raise ValueError(f"source.held_out={held_out} by {held_out_by!r}; give a share from 0 to below 1, by 'video' or 'window'")
        self._videos = Path()
        self._held: frozenset[str] = frozenset()

    def job(self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run) -> Job:
        if not folder:
            raise ValueError("source=folder needs input=FOLDER, a folder with videos")
        self._videos = Path(folder)
        names = self._wanted(videos_in(self._videos))
        sidecars = Sidecars(self._videos, names, words, table=Path(captions) if captions else None)
        infos: dict[str, VideoInfo] = {}
        refused: list[Refused] = []
        for done in run(self._probe, names):
            if done.result is None:
                refused.append(Refused(done.item, 0.0, done.reason))
            else:
                infos[done.item] = done.result
        units: list[Windows] = []
        for name, info in infos.items():
            try:
                units += self._units(name, info, sidecars.of(name))
            except ValueError as error:
                refused.append(Refused(name, 0.0, str(error)))
        if not units:
            reasons = "; ".join(f"{one.source}: {one.reason}" for one in refused[:3])
            raise ValueError(f"none of {len(names)} videos in {folder} gives a clip: {reasons}")
        self._held = self._chosen(units)
        clips = sum(unit.last - unit.first for unit in units)
        notes = {"videos": len(names), "captions": sidecars.unused.report()}
        told = sidecars.unused.lines()
        return Job(units, self._make, min(clips, count or clips), lambda unit: unit.video, self.licence, count, refused, notes, told)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        unmet = [pattern for pattern in self.leave_out if not any(fnmatchcase(name, pattern) for name in names)]
        if unmet:
            shown = ", ".join((*names[:5], "…") if len(names) > 5 else names)
            raise ValueError(f"source.leave_out: no video is called {', '.join(unmet)}; there are {shown}")
        return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in self.leave_out)]

    def _probe(self, name: str) -> VideoInfo:
        return probe(self._videos / name)

    def _units(self, name: str, info: VideoInfo, captions: tuple[Caption, ...]) -> list[Windows]:
        fps = info.fps if self.fps is None else min(self.fps, info.fps)
        size = fitted(info.height, info.width, self.size, self.multiple)
        whole = max(info.frames, 1) if fps == info.fps else max(1, int(info.duration * fps + 0.5))
        windows, rest = divmod(whole, self.frames)
        windows += self._usable(rest) >= self.min_frames
        if not windows:
            raise ValueError(f"{whole} frames at {fps:g} a second are fewer than source.min_frames={self.min_frames}")
        windows = min(windows, self.windows_per_video or windows)
        return [Windows(name, captions, fps, size, first, min(first + _FOLDER_UNIT, windows)) for first in range(0, windows, _FOLDER_UNIT)]

    def _make(self, unit: Windows) -> list[Made | Refused]:
        made: list[Made | Refused] = []
        pictures: list[np.ndarray] = []
        good, number = True, unit.first
        shown = stream(self._videos / unit.video, start=unit.first * self.frames / unit.fps, fps=unit.fps, size=unit.size, limits=LIMITS)
        for picture in shown:
            pictures.append(picture.pixels)
            good = good and picture.good
            if len(pictures) == self.frames:
                made.append(self._window(unit, number, pictures, good))
                pictures, good, number = [], True, number + 1
                if number == unit.last:
                    break
        shown.close()
        kept = self._usable(len(pictures))
        if number < unit.last and kept >= self.min_frames:
            made.append(self._window(unit, number, pictures[:kept], good))
            number += 1
        if not made:
            raise ValueError(f"no window of {self.min_frames} frames or more decodes ({shown.report})")
        if number < unit.last - 1:  # only the very last window may be missing: durations in headers are rounded
            made.append(
                Refused(unit.video, number * self.frames / unit.fps, f"it ends {unit.last - number} windows early ({shown.report})")
            )
        return made

    def _usable(self, frames: int) -> int:
        """The largest 1 + k * stride_time up to `frames`; 0 of none."""
        return frames - (frames - 1) % self.stride_time if frames else 0

    def _window(self, unit: Windows, number: int, pictures: list[np.ndarray], good: bool) -> Made | Refused:
        start = number * self.frames / unit.fps
        if not good:
            return Refused(unit.video, start, f"window {number} has corrupt or missing frames")
        frames: UInt8[np.ndarray, "T H W 3"] = np.stack(pictures)
        key = clip_key(unit.video, number)
        facts = ClipFacts(
            key=key,
            frames=len(frames),
            fps=unit.fps,
            height=unit.size[0],
            width=unit.size[1],
            captions=unit.captions,
            split="heldout" if self._name(unit.video, number) in self._held else "train",
            source=unit.video,
            start=start,
        )
        return Made(facts, encode(frames, unit.fps, lossless=self.lossless))

    def _name(self, video: str, number: int) -> str:
        return video if self.held_out_by == "video" else f"{video}\0{number}"

    def _chosen(self, units: Sequence[Windows]) -> frozenset[str]:
        """The names of what is held out: each by its own hash, so that more videos later move none between the splits."""
        if not self.held_out:
            return frozenset()
        names = {self._name(unit.video, number) for unit in units for number in range(unit.first, unit.last)}
        if len(names) == 1:
            raise ValueError(f"one {self.held_out_by} cannot be split; set source.held_out=0 or source.held_out_by=window")
        hashed = {name: int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names}
        chosen = {name for name, value in hashed.items() if value < self.held_out} or {min(names, key=hashed.__getitem__)}
        return frozenset(chosen if len(chosen) < len(names) else chosen - {max(names, key=hashed.__getitem__)})


def clip_key(source: str, number: int) -> str:
    """The key of window `number` of a source: the same in every shard it is ever written to."""
    return f"{sha1(source.encode()).hexdigest()[:12]}-{number:05d}"


def videos_in(folder: Path) -> list[str]:
    """The videos in a folder and below, by suffix, as relative paths in order; none is a `ValueError`. Hidden ones are left out."""
    if not folder.is_dir():
        raise ValueError(f"input={folder} is no folder")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    found = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise ValueError(f"input={folder} holds no video ({', '.join(SUFFIXES)})")
    return found


def fitted(height: int, width: int, size: int | None, multiple: int) -> tuple[int, int]:
    """The (H, W) that a video is stored in: short side `size` or less, both sides multiples, never enlarged."""
    scale = min(1.0, size / min(height, width)) if size else 1.0
    fits = [round(side * scale) // multiple * multiple for side in (height, width)]
    if min(fits) < 1:
        raise ValueError(f"{height}x{width} pixels are too few for sides that are multiples of source.multiple={multiple}")
    return fits[0], fits[1]
