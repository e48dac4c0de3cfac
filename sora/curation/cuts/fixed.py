"""Cuts that do not depend on what frames show: by the clock, and none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from sora.curation.cuts.frames import within
from sora.curation.spans import Transition

UNSEEN = 16  # pixels of the shorter side of frames that are only counted


@dataclass(frozen=True, kw_only=True)
class FixedCuts:
    """Cuts every `seconds`, by a video's average rate; what is left at its end is the last, shorter part."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"cuts.seconds={self.seconds} must be a positive number of seconds")

    def identity(self) -> str:
        return f"fixed seconds={self.seconds}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return within(height, width, UNSEEN)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        """A hard cut at the frame nearest to each multiple of `seconds`; ValueError if that is more than one a frame."""
        if not self.seconds * fps >= 1:
            raise ValueError(f"cuts.seconds={self.seconds} is less than a frame of a video of {fps:g} frames a second; raise it")
        count = sum(1 for _ in frames)
        places = (round(step * self.seconds * fps) for step in range(1, int(count / (self.seconds * fps)) + 1))
        return [Transition(place, place) for place in places if place < count]


@dataclass(frozen=True, kw_only=True)
class NoCuts:
    """No cuts: for videos that are clips of one shot already."""

    def identity(self) -> str:
        return "none"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return within(height, width, UNSEEN)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        """No transition; the frames are not asked for."""
        return []
