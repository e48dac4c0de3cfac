"""The interface of what scores clips by a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.system.terminal import counted


@runtime_checkable
class FrameScorer(Protocol):
    """The interface of a model that scores clips; a module of the user's own may implement it.

    names: of the scores, always the same ones. needs_text: whether a clip's caption is needed.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def needs_text(self) -> bool: ...

    def identity(self) -> str:
        """A text for everything that the scores depend on besides the clip: the model's hash, its settings, versions of packages."""
        ...

    def frames(self, count: int) -> list[int]:
        """Which frames of a clip of so many the scorer takes, by number, in order, at least one."""
        ...

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) at which the scorer takes the frames of a video of that size."""
        ...

    def __call__(self, frames: UInt8[ndarray, "T H W 3"], *, text: str | None) -> dict[str, float]:
        """The scores of a clip by name, from the frames asked for (RGB). text: the clip's caption, if it has one."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A scorer that also gives embeddings, by which `find_duplicates` can compare clips."""

    def embed(self, frames: UInt8[ndarray, "T H W 3"]) -> Float[ndarray, " D"]:
        """One vector for a clip, whose cosine with another clip's says how alike they are."""
        ...


def spread(count: int, wanted: int) -> list[int]:
    """The numbers of `wanted` frames, the middles of equal parts of a clip; every frame of a clip that has no more."""
    if wanted < 1:
        raise ValueError(f"{counted(wanted, 'frame')} of a clip say nothing about it; set frames to 1 or more")
    return sorted({int(place) for place in (np.arange(min(wanted, count)) + 0.5) * count / min(wanted, count)})


def shrunk(height: int, width: int, short: int) -> tuple[int, int]:
    """The (H, W) with the short side at most `short`, in the same proportions, and no side above 16 times that."""
    scale = min(1.0, short / min(height, width))
    return tuple(max(1, min(16 * short, round(side * scale))) for side in (height, width))  # pyright: ignore[reportReturnType]
