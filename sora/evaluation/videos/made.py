"""Sets of videos that an evaluation makes: its own lossless files, and clips cropped to what a VAE takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from sora.evaluation.videos.clips import ClipPolicy, Clips, ClipWindow
from sora.evaluation.videos.sets import Shape
from sora.patches.geometry import Geometry
from sora.system import files as storage


class RequestedVideo(Protocol):
    """The content of a generated file, such as a request of the generator."""

    @property
    def prompt(self) -> str: ...
    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def fps(self) -> float: ...


@dataclass(frozen=True)
class MadeVideos:
    """Lossless files that sora wrote, in the order of the requests."""

    asked: Sequence[RequestedVideo]
    paths: Sequence[Path]

    @property
    def place(self) -> str:
        return str(self.paths[0].parent)

    @property
    def decoder(self) -> str:
        from sora.video.files import PYAV

        return PYAV.identity()

    def about(self) -> dict[str, Any]:
        return {"fingerprint": storage.text_hash("\n".join(sorted(self._hashes))), "split": None, "clips": len(self)}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        return self.paths[number].name

    def identity(self, number: int) -> str:
        return self._hashes[number]

    def frames(self, number: int) -> int:
        return self.asked[number].frames

    def shape(self, number: int) -> Shape:
        asked = self.asked[number]
        return Shape(asked.height, asked.width, asked.fps)

    def prompt(self, number: int) -> str | None:
        return self.asked[number].prompt

    def codec(self, number: int) -> str | None:
        return "lossless, as made"

    def read(self, number: int, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]:
        from sora.video.files import CONFINED

        found, asked = CONFINED.read(self.paths[number]), self.asked[number]
        if not found.report.clean or found.frames.shape[:3] != (asked.frames, asked.height, asked.width):
            raise ValueError(f"{self.paths[number]} is damaged ({found.report}); delete it, and it is made again")
        return found.frames[first : first + frames]

    @cached_property
    def _hashes(self) -> list[str]:
        return [storage.file_hash(path) for path in self.paths]


@dataclass(frozen=True)
class FittedVideos:
    """Clips cropped to what a VAE of `stride` takes, from their start: the originals of reconstructions."""

    clips: Clips
    stride: tuple[int, int, int]

    @property
    def place(self) -> str:
        return self.clips.videos.place

    @property
    def decoder(self) -> str:
        return self.clips.videos.decoder

    def about(self) -> dict[str, Any]:
        return self.clips.videos.about()

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, number: int) -> str:
        return self.clips.name(number)

    def identity(self, number: int) -> str:
        return f"{self.clips.key(number)}:{self.stride}"

    def frames(self, number: int) -> int:
        return Geometry(self.stride).most_frames(self.clips.frames(number))

    def shape(self, number: int) -> Shape:
        shape = self.clips.shape(number)
        _, height, width = Geometry(self.stride).largest(1, shape.height, shape.width)
        return Shape(height, width, shape.fps)

    def prompt(self, number: int) -> str | None:
        return self.clips.prompt(number)

    def codec(self, number: int) -> str | None:
        return None

    def read(self, number: int, first: int, frames: int) -> UInt8[np.ndarray, "T H W 3"]:
        return fit(self.clips.read(number), self.stride)[first : first + frames]


def fit(frames: UInt8[np.ndarray, "T H W 3"], stride: tuple[int, int, int]) -> UInt8[np.ndarray, "_ _ _ 3"]:
    """The longest and largest part of a clip, from its start and upper left corner, that a VAE of this stride takes."""
    count, height, width = Geometry(stride).largest(*frames.shape[:3])
    if not height or not width:
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[1]} are smaller than the VAE's blocks of {stride[2]}x{stride[1]}")
    return frames[:count, :height, :width].copy()


def whole(videos: MadeVideos | FittedVideos, *, frames: int | None = None, stride: int = 1) -> Clips:
    """One clip of each video: all of it, or its first `frames` frames at a stride."""
    policy = ClipPolicy(frames=frames, stride=stride, windows=1, start="first", short="refuse", choose="first")
    counts = [frames or 1 + (videos.frames(number) - 1) // stride for number in range(len(videos))]
    return Clips(videos, policy, tuple(ClipWindow(number, 0, count) for number, count in enumerate(counts)))
