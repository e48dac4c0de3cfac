"""The sources of `sora prepare`: a folder of anybody's videos, or the built-in world. Both give encoded clips with their facts.

A source lists its units of work; `make` turns a unit into clips in any process. Units and their clips have one fixed order, so the dataset
does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import blake2b, sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from sora.data.index.index import Caption, ClipFacts
from sora.data.index.units import identity_of
from sora.gate.sizes import Number
from sora.ingest.clip_texts import CaptionWords
from sora.ingest.sidecars import Sidecars
from sora.ingest.tree import Passed, Refused, Run, sorted_files
from sora.patches.geometry import Geometry
from sora.system.files import file_hash
from sora.system.terminal import counted
from sora.video.decoding import pictures
from sora.video.decoding.pictures import is_still
from sora.video.files import LIMITS, PYAV, ReadReport, encode, probe, settled, stream
from sora.video.stream_copy import may_be_copied, stream_copy

if TYPE_CHECKING:
    from sora.world.world import World

_VERSION = 3  # counts up when a unit gives other clips; saved units of another version are made anew
_WORLD_UNIT = 16  # clips
_FOLDER_UNIT = 8  # the least windows of a step
_STEPS = 64  # the most steps of a file: each may have to walk all packets before its own
_LONGEST = 4096  # the most frames of a longer step, so that it ends within prepare's unit_seconds
_ROUNDED = 1e-3  # seconds by which the times in a file may be off
STREAM = "stream"  # in a clip's `extra`: "copied" as its file has it, or "encoded"
_TAIL, _BEYOND = "frames at the end, too few for a window (source.min_frames, source.stride_time)", "frames beyond source.windows_per_video"


class Made(NamedTuple):
    """A clip ready for a shard."""

    facts: ClipFacts
    media: bytes


class SourceNote(NamedTuple):
    """A remark about a video that gives clips: `frames` of it that are in no clip, or (frames 0) an oddity of its pictures."""

    source: str
    what: str
    frames: int


@dataclass(kw_only=True)
class IngestJob:
    """Units of work, and the functions that make clips of them. Those marked (any) run in any process and raise ValueError for a bad unit.

    identity: a text for all that a unit is made from (any). steps: the work on a unit (any). make: the clips of one step (any). settle:
    called with all clips before the first is written. completed: a clip with its final facts. most: the most clips. refused, passed: files
    that give no clip, and files that were not examined. notes: for report.json. told: the command's last lines.
    """

    units: Sequence[Any]
    identity: Callable[[Any], str]
    steps: Callable[[Any], list[Any]]
    make: Callable[[Any], list[Made | Refused | SourceNote]]
    settle: Callable[[Iterable[ClipFacts]], None]
    completed: Callable[[ClipFacts], ClipFacts]
    name_of: Callable[[Any], str]
    licence: str
    most: int | None = None
    refused: Sequence[Refused] = ()
    passed: Sequence[Passed] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    told: Sequence[str] = ()


@runtime_checkable
class Source(Protocol):
    """The interface of a source for `sora prepare`: it returns its job. `run` maps a function over items in guarded processes, in order.

    captions: a table of captions. words: how files with captions are found and read. besides: a folder below the input to skip, the output.
    """

    def job(
        self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run, besides: Path | None = None
    ) -> IngestJob: ...


class WorldSource:
    """Clips of the built-in world: `count` for training, and `heldout` clips of combinations that training never shows."""

    def __init__(self, *, world: World, heldout: int, lossless: bool, licence: str) -> None:
        self.world, self.heldout, self.lossless, self.licence = world, heldout, lossless, licence
        if heldout < 0:
            raise ValueError(f"source.heldout is {heldout}; give 0 or more clips")

    def job(
        self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run, besides: Path | None = None
    ) -> IngestJob:
        if folder is not None or captions is not None:
            raise ValueError("source=world takes no input and no captions: it draws its own; use source=folder for videos")
        if words.keys:
            raise ValueError(
                f"captions.keys={dict(words.keys)} has no effect with source=world, which writes its own captions; leave it out"
            )
        if not count or count < 1:
            raise ValueError(f"source=world with count={count} makes no clips; set count, such as count=3000")
        units = [
            (split, first, min(first + _WORLD_UNIT, clips))
            for split, clips in (("train", count), ("heldout", self.heldout))
            for first in range(0, clips, _WORLD_UNIT)
        ]
        return IngestJob(
            units=units,
            identity=self._identity,
            steps=_whole,
            make=self._make,
            settle=_nothing,
            completed=_as_it_is,
            name_of=lambda unit: f"world {unit}",
            licence=self.licence,
        )

    def _identity(self, unit: tuple[str, int, int]) -> str:
        return identity_of(repr(self.world), unit=unit, lossless=self.lossless, version=_VERSION, reader=PYAV.identity())

    def _make(self, unit: tuple[str, int, int]) -> list[Made | Refused | SourceNote]:
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


def _whole(unit: Any) -> list[Any]:
    return [unit]


def _nothing(clips: Iterable[ClipFacts]) -> None:
    """Do nothing: these clips know their split already."""


def _as_it_is(facts: ClipFacts) -> ClipFacts:
    return facts


class Windows(NamedTuple):
    """Work on a file: its windows `first` to `last` - 1, of `frames` frames each, at `fps` and (H, W) `size`. whole: the only window is the
    whole file as it is stored, so that its stream may be copied. told: notes and refusals that are known before decoding."""

    file: str
    frames: int
    fps: float
    size: tuple[int, int]
    first: int
    last: int
    whole: bool = False
    told: tuple[SourceNote | Refused, ...] = ()


class FolderSource:
    """Windows of the videos in a folder and its subfolders, one after another in time without overlap; and its images, each a clip.

    Videos and images are recognised by their bytes. fps: the most frames a second (slower videos keep their own rate; null: all do).
    frames: of a window; the last one of a video may be shorter, 1 + k * stride_time and at least `min_frames`. size: the short side in
    pixels that larger videos are scaled down to (null: no scaling). multiple: sides are cropped evenly to multiples of it.
    windows_per_video: the most windows (null: all). images: whether to use them; an image with a video's name is its cover, and skipped.
    held_out: share of the files (held_out_by=video) or windows (held_out_by=window) for the held-out split, chosen by the hash of their
    names, at least one if the share is not 0. leave_out: patterns of paths in the folder that are skipped. follow_links: whether linked
    folders are walked. lossless: RGB without loss, else H.264 at crf 18. A file that is one whole window, neither scaled nor cropped, keeps
    its stream; `extra` says of each clip which it was.
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
        images: bool,
        held_out: float,
        held_out_by: str,
        leave_out: Sequence[str],
        follow_links: bool,
        lossless: bool,
        licence: str,
    ) -> None:
        self.leave_out, self.images, self.follow_links = tuple(leave_out), images, follow_links
        self.fps, self.frames, self.min_frames, self.stride_time = fps, frames, min_frames, stride_time
        self.size, self.multiple, self.windows_per_video = size, multiple, windows_per_video
        self.held_out, self.held_out_by, self.lossless, self.licence = held_out, held_out_by, lossless, licence
        least = {"frames": frames, "min_frames": min_frames, "stride_time": stride_time, "size": size, "multiple": multiple}
        for name, value in (least | {"windows_per_video": windows_per_video}).items():
            if value is not None:
                Number(1, whole=True).of(value, f"source.{name}")
        if fps is not None:
            Number(0, above=True, most=1e6).of(fps, "source.fps")
        self._lengths = Geometry((stride_time, 1, 1))
        if self._lengths.most_frames(frames) != frames:
            near = self._lengths.decoded(1 + round((frames - 1) / stride_time))
            raise ValueError(f"source.frames={frames} is not 1 + k x source.stride_time={stride_time}; use {near}")
        if not lossless and multiple % 2:
            raise ValueError(f"source.multiple={multiple}: sides of 4:2:0 video are even; use a multiple of 2 or source.lossless=true")
        if not 0 <= held_out < 1 or held_out_by not in ("video", "window"):
            raise ValueError(f"source.held_out={held_out} by {held_out_by!r}; give a share from 0 to below 1, by 'video' or 'window'")
        self._folder = Path()

    def job(
        self, *, folder: str | None, captions: str | None, words: CaptionWords, count: int | None, run: Run, besides: Path | None = None
    ) -> IngestJob:
        if not folder:
            raise ValueError("source=folder needs input=FOLDER, a folder with videos or images")
        if count is not None:
            Number(1, whole=True).of(count, "count")
        if "://" in folder:
            raise ValueError(f"input={folder} is a URL; copy or mount it, and name its folder here (shards of clips: sora data index)")
        self._folder = Path(folder)
        seen = sorted_files(self._folder, run, self.leave_out, images=self.images, follow=self.follow_links, besides=besides)
        if self.held_out and self.held_out_by == "video" and len(seen.media) == 1:
            raise one_alone("video")
        sidecars = Sidecars(self._folder, seen.media, words, table=Path(captions) if captions else None)
        said: dict[str, tuple[Caption, ...]] = {}
        for name in seen.media:
            try:
                said[name] = sidecars.of(name)
            except ValueError as error:
                seen.refused.append(Refused(name, 0.0, str(error)))
        sidecars.refuse_unmet()
        splits = Splits(self.held_out, self.held_out_by)
        return IngestJob(
            units=list(said),
            identity=self._identity,
            steps=self._steps,
            make=self._make,
            settle=splits.settle,
            completed=lambda facts: replace(facts, captions=said[facts.source], split=splits.of(facts)),
            name_of=str,
            licence=self.licence,
            most=count,
            refused=sorted(seen.refused),
            passed=seen.passed_over(sidecars.taken()),
            notes={"files": len(seen.media), "captions": sidecars.unused.report()},
            told=sidecars.unused.lines(),
        )

    def _identity(self, name: str) -> str:
        try:
            content = file_hash(self._folder / name)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        names = ("fps", "frames", "min_frames", "stride_time", "size", "multiple", "windows_per_video", "lossless")
        settings = {key: getattr(self, key) for key in names}
        return identity_of(content, name=name, version=_VERSION, reader=f"{PYAV.identity()} {pictures.identity()}", **settings)

    def _steps(self, name: str) -> list[Windows]:
        # Walk all packets: headers often tell a wrong length.
        info = probe(self._folder / name, timeline=True)
        size = fitted(info.height, info.width, self.size, self.multiple)
        if is_still(info):
            return [Windows(name, 1, info.fps, size, 0, 1)]
        assert info.timeline is not None
        fps = info.fps if self.fps is None else min(self.fps, info.fps)
        whole = int((float(info.timeline.times[-1]) + _ROUNDED) * fps) + 1
        windows, rest = divmod(whole, self.frames)
        kept = self._lengths.most_frames(rest) if self._lengths.most_frames(rest) >= self.min_frames else 0
        if not windows + bool(kept):
            raise ValueError(f"{counted(whole, 'frame')} at {fps:g} a second, fewer than source.min_frames={self.min_frames}")
        wanted = min(windows + bool(kept), self.windows_per_video or windows + 1)
        told: list[SourceNote | Refused] = [Refused(name, 0.0, info.lacks)] if info.lacks else []
        told += [SourceNote(name, what, 0) for what in info.odd]
        beyond = (windows - wanted) * self.frames + kept if wanted < windows + bool(kept) else 0
        told += [SourceNote(name, _BEYOND, beyond)] if beyond else []
        told += [SourceNote(name, _TAIL, rest - kept)] if rest > kept else []
        unit = max(_FOLDER_UNIT, -(-wanted // _STEPS), int(min(info.run, _LONGEST) / info.fps * fps / self.frames))
        ends = [(first, min(first + unit, wanted)) for first in range(0, wanted, unit)]
        cut = info.frames != (kept or self.frames) or wanted > 1
        copied = not cut and (fps, size) == (info.fps, (info.height, info.width)) and may_be_copied(info)
        return [Windows(name, self.frames, fps, size, *end, whole=copied, told=() if end[0] else tuple(told)) for end in ends]

    def _make(self, unit: Windows) -> list[Made | Refused | SourceNote]:
        start = unit.first * unit.frames / unit.fps
        windows, file = partial(self._windows, unit), self._folder / unit.file
        made, number, report = settled(windows, file, start=start, fps=unit.fps, size=unit.size, limits=LIMITS)
        if not made:
            raise ValueError(f"no window of {counted(self.min_frames, 'frame')} or more decodes ({report})")
        if number < unit.last:
            made.append(
                Refused(unit.file, number * unit.frames / unit.fps, f"it ends {counted(unit.last - number, 'window')} early ({report})")
            )
        return [*unit.told, *made]

    def _windows(self, unit: Windows, shown: stream) -> tuple[list[Made | Refused], int, ReadReport]:
        """The windows of a unit, the number after the last one, and the report of reading them."""
        made: list[Made | Refused] = []
        pictures: list[np.ndarray] = []
        good, number = True, unit.first
        for picture in shown:
            pictures.append(picture.pixels)
            good = good and picture.good
            if len(pictures) == unit.frames:
                made.append(self._window(unit, number, pictures, good))
                pictures, good, number = [], True, number + 1
                if number == unit.last:
                    break
        kept = self._lengths.most_frames(len(pictures))
        if number < unit.last and kept >= self.min_frames:
            made.append(self._window(unit, number, pictures[:kept], good))
            number += 1
        return made, number, shown.report

    def _window(self, unit: Windows, number: int, pictures: list[np.ndarray], good: bool) -> Made | Refused:
        start = number * unit.frames / unit.fps
        if not good:
            return Refused(unit.file, start, f"window {number} has corrupt or missing frames")
        frames: UInt8[np.ndarray, "T H W 3"] = np.stack(pictures)
        height, width = unit.size
        copy = stream_copy(self._folder / unit.file, frames, limits=LIMITS) if unit.whole else None
        said = {STREAM: "encoded" if copy is None else "copied"}
        facts = ClipFacts(clip_key(unit.file, number), len(frames), unit.fps, height, width, source=unit.file, start=start, extra=said)
        return Made(facts, encode(frames, unit.fps, lossless=self.lossless) if copy is None else copy)


class Splits:
    """Chooses the held-out clips of a folder: each file (by="video") or window by its own hash, so that more files later move none."""

    def __init__(self, share: float, by: str) -> None:
        self.share, self.by = share, by
        self._held: frozenset[str] = frozenset()

    def settle(self, clips: Iterable[ClipFacts]) -> None:
        """Choose among these clips. Raises ValueError if there is only one file or window."""
        if not self.share:
            return
        names = {self._name(facts) for facts in clips}
        if not names:  # the caller reports that there are no clips
            return
        if len(names) == 1:
            raise one_alone(self.by)
        hashed = {name: int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names}
        chosen = {name for name, value in hashed.items() if value < self.share} or {min(names, key=hashed.__getitem__)}
        self._held = frozenset(chosen if len(chosen) < len(names) else chosen - {max(names, key=hashed.__getitem__)})

    def of(self, facts: ClipFacts) -> str:
        return "heldout" if self._name(facts) in self._held else "train"

    def _name(self, facts: ClipFacts) -> str:
        return facts.source if self.by == "video" else f"{facts.source}\0{int(facts.key.rpartition('-')[2])}"


def one_alone(by: str) -> ValueError:
    """The error for a share of a single file or window, which cannot be held out."""
    return ValueError(f"one {by} cannot be split; set source.held_out=0{' or source.held_out_by=window' * (by == 'video')}")


def clip_key(source: str, number: int) -> str:
    """The key of window `number` of a source, the same in every shard."""
    return f"{sha1(source.encode()).hexdigest()[:12]}-{number:05d}"


def fitted(height: int, width: int, size: int | None, multiple: int, *, key: str = "source") -> tuple[int, int]:
    """The (H, W) that a video is stored at: short side `size` or less, both sides multiples, never enlarged. key: of the settings."""
    scale = min(1.0, size / min(height, width)) if size else 1.0
    fits = [round(side * scale) // multiple * multiple for side in (height, width)]
    if min(fits) < 1:
        few = f"{width}x{height} pixels" if scale == 1 else f"{width}x{height} pixels, scaled down to {key}.size={size},"
        raise ValueError(f"{few} are too few for sides that are multiples of {key}.multiple={multiple}")
    return fits[0], fits[1]
