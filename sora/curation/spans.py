"""Spans of a video's frames: the transitions between shots, the clips between them, and the protocol of what finds transitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


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
