"""Finds where a picture slowly turns into another: cheap evidence for dissolves and fades, in frames of 27 x 48.

In a dissolve, frame t is (1 - a_t) A + a_t B, so the frames between two of its frames lie on the straight line between them. Moving things
leave that line: a pixel that they cross takes other values on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32
from numpy.lib.stride_tricks import sliding_window_view

LAGS = (8, 24)  # frames between the two that are compared: for short transitions, and for long ones
BETWEEN = 5  # frames between them whose distance to the line is measured
FLOOR = 1e3  # squared levels of all pixels: what the noise of a still picture comes to
BLOCKS = (3, 6)  # rows and columns of blocks


@dataclass(frozen=True, kw_only=True)
class SlowChange:
    """Marks frames that a slow change of the whole picture may hold.

    change: mean difference, of 255, of two frames `LAGS` apart from which on they count. wide: the difference that three of four blocks of
    the picture exceed, so that one moving thing is not enough. bent: the squared distance of the frames between from the straight line, as
    a share of the squared difference, at most. grow: frames that are marked on both sides. gap: unmarked frames between marked ones, at
    most, that are marked with them.
    """

    change: float
    wide: float
    bent: float
    grow: int
    gap: int

    def __post_init__(self) -> None:
        for name in ("change", "wide", "bent", "grow", "gap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cuts.slow.{name}={getattr(self, name)} must be 0 or more")

    def identity(self) -> str:
        return f"change={self.change} wide={self.wide} bent={self.bent} grow={self.grow} gap={self.gap}"

    def marked(self, frames: Float32[np.ndarray, "T 27 48 3"], cuts: Iterable[int]) -> Bool[np.ndarray, "T"]:
        """The marked frames. A pair of frames on two sides of a known hard cut, by number in `cuts`, does not count."""
        found = np.zeros(len(frames), bool)
        for lag in LAGS:
            if len(frames) > lag:
                centres = self._pairs(frames, lag)
                for cut in cuts:  # centre t stands for frames t - lag / 2 and t + lag / 2
                    centres[max(0, cut - lag // 2) : max(0, cut + lag // 2)] = False
                found |= centres
        return _filled(_grown(found, self.grow), self.gap) if found.any() else found

    def _pairs(self, frames: Float32[np.ndarray, "T 27 48 3"], lag: int) -> Bool[np.ndarray, "T"]:
        """Whether the frames around each one, `lag` apart, differ as in a slow change."""
        count = len(frames) - lag
        flat = frames.reshape(len(frames), -1)
        ways = flat[lag:] - flat[:-lag]
        sizes = np.abs(ways)
        rows, columns = BLOCKS
        blocks = sizes.reshape(count, rows, frames.shape[1] // rows, columns, frames.shape[2] // columns, 3).mean(axis=(2, 4, 5))
        wide = np.percentile(blocks.reshape(count, -1), 25, axis=1) > self.wide
        likely = np.flatnonzero(wide & (sizes.mean(axis=1) > self.change))
        found = np.zeros(len(frames), bool)
        found[likely + lag // 2] = _bent(flat, likely, ways[likely], lag) < self.bent
        return found


def _bent(
    flat: Float32[np.ndarray, "T pixels"], firsts: np.ndarray, ways: Float32[np.ndarray, "n pixels"], lag: int
) -> Float32[np.ndarray, "n"]:
    """The mean squared distance of the frames between frames `firsts` and `firsts` + lag from the line between these, whose difference is
    `ways`, as a share of its squared length."""
    squares = np.einsum("np,np->n", ways, ways) + FLOOR
    found = np.zeros(len(firsts), np.float32)
    for step in np.linspace(0, lag, BETWEEN + 2).round().astype(int)[1:-1]:
        offsets = flat[firsts + step] - flat[firsts]
        along = np.einsum("np,np->n", offsets, ways)
        found += np.einsum("np,np->n", offsets, offsets) - along**2 / squares
    return found / (BETWEEN * squares)


def _grown(marked: Bool[np.ndarray, "T"], by: int) -> Bool[np.ndarray, "T"]:
    """Frames within `by` of a marked one."""
    return np.asarray(sliding_window_view(np.pad(marked, by), 2 * by + 1).any(axis=1))


def _filled(marked: Bool[np.ndarray, "T"], gap: int) -> Bool[np.ndarray, "T"]:
    """The marked frames, and those between two marked ones that are no more than `gap` in a row."""
    found = marked.copy()
    places = np.flatnonzero(marked)
    for one, two in pairwise(places):
        if 1 < two - one <= gap + 1:
            found[one:two] = True
    return found
