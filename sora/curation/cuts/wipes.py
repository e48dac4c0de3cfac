"""Finds wipes, in frames of 27 x 48: a wipe is a hard cut of the video whose columns, or rows, are shifted in time.

If an edge moves across the picture in s frames, every column changes at its own time, s / 48 frames after its neighbour. With each column
read so much later or earlier, all of them change at once. No network is needed, and TransNetV2 finds hardly any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

SPANS = (7, 9, 11, 13, 16, 19, 23, 27, 32)  # frames in which the edge crosses the picture
HALF, GAP = 2, 5  # a change is measured between frames HALF before and after; GAP frames from it, it must be small
SCALES = ((2, 5), (4, 9), (7, 15))  # the same at more scales
STAYS = 11  # frames on both sides, at which the picture must still be another
EVERYWHERE = 20  # percent of the lines that may change less
NOISE = 2.0  # of 255
APART = 10  # frames between two wipes, at least
MARGIN = max(SPANS) // 2 + SCALES[-1][0] + SCALES[-1][1] + APART  # frames on each side on which an answer depends


@dataclass(frozen=True)
class Wipe:
    """A wipe: the frame at which its edge is in the middle, and how many frames it takes to cross the picture."""

    middle: int
    span: int
    score: float


@dataclass(frozen=True, kw_only=True)
class WipeRule:
    """What the changes of lines shifted in time must be to count as a wipe.

    change: their mean, of 255. everywhere: what four of five lines exceed. moving: how many times larger they are than those of unshifted
    lines in the same frames, which tells a wipe from a fast pan. stays: the share of the change that is left STAYS frames before and after,
    which tells it from a thing that crosses the picture. score: the product of `moving` and of how many times larger the changes are than
    those shortly before and after, at three scales.
    """

    change: float
    everywhere: float
    moving: float
    stays: float
    score: float

    def __post_init__(self) -> None:
        for name in ("change", "everywhere", "moving", "stays", "score"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cuts.wipes.{name}={getattr(self, name)} must be 0 or more")

    def identity(self) -> str:
        return f"change={self.change} everywhere={self.everywhere} moving={self.moving} stays={self.stays} score={self.score}"

    def wipes(self, frames: Float32[np.ndarray, "T 27 48 3"]) -> list[Wipe]:
        """The wipes whose answer does not need frames beyond the given ones, in order."""
        found: list[Wipe] = []
        changes = {half: _changes(frames, half) for half in {HALF, STAYS, *(half for half, _ in SCALES)}}
        for axis in (1, 2):  # the mean over rows leaves columns, that over columns leaves rows
            lines = {half: change.mean(axis=axis) for half, change in changes.items()}
            for span in SPANS:
                found += [wipe for sign in (1, -1) for wipe in self._of_span(lines, sign * span)]
        best: list[Wipe] = []
        for wipe in sorted(found, key=lambda each: -each.score):
            if all(abs(wipe.middle - other.middle) >= APART for other in best):
                best.append(wipe)
        return sorted(best, key=lambda each: each.middle)

    def _of_span(self, lines: dict[int, Float32[np.ndarray, "T m"]], span: int) -> list[Wipe]:
        """The wipes of one axis, direction and speed; lines: the changes of each line at each half width."""
        count, number = lines[HALF].shape
        shifts = np.rint(span * ((np.arange(number) + 0.5) / number - 0.5)).astype(int)
        reach = int(np.abs(shifts).max())
        if count <= 2 * reach:
            return []

        def shifted(half: int, times: np.ndarray) -> Float32[np.ndarray, "n m"]:
            return lines[half][np.clip(times[:, None] + shifts, 0, count - 1), np.arange(number)]

        times = np.arange(reach, count - reach)
        change = shifted(HALF, times)
        unshifted = np.convolve(lines[HALF].mean(axis=1), np.full(2 * reach + 1, 1 / (2 * reach + 1)), mode="valid")
        moving = change.mean(axis=1) / (unshifted + NOISE)
        likely = (change.mean(axis=1) > self.change) & (moving > self.moving)
        likely &= np.percentile(change, EVERYWHERE, axis=1) > self.everywhere
        times, moving, change = times[likely], moving[likely], change[likely]
        stays = np.minimum(shifted(STAYS, times), change).mean(axis=1) / (change.mean(axis=1) + 1e-6)
        score = moving
        for half, gap in SCALES:
            beside = np.maximum(shifted(half, times - gap), shifted(half, times + gap))
            score = score * np.exp(np.log((shifted(half, times) + NOISE) / (beside + NOISE)).mean(axis=1))
        good = (stays > self.stays) & (score > self.score)
        return [Wipe(int(time), abs(span), float(value)) for time, value in zip(times[good], score[good], strict=True)]


def _changes(frames: Float32[np.ndarray, "T 27 48 3"], half: int) -> Float32[np.ndarray, "T 27 48"]:
    """The mean difference, over colours, of the frames `half` before and after each; 0 where one is missing."""
    found = np.zeros(frames.shape[:3], np.float32)
    if len(frames) > 2 * half:
        found[half:-half] = np.abs(frames[2 * half :] - frames[: -2 * half]).mean(axis=3)
    return found
