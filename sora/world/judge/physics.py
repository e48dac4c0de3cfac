"""Measures whether things obey the world's physics: thrown things follow a parabola, hidden things return on their line.

The events of a prompt only say that a thing bounced or hid. But a clip may bounce along straight lines, or let a thing return from behind a
bar at a place that it could not have reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from sora.metrics.metric import VideoMetric
from sora.world.judge.observation import Observation

LEAST_OF_ARC = 3  # frames
HIDDEN = 0.5  # of a thing's area, below which its centre is unreliable
ASIDE = 0.1  # short sides
GROWN = 1.3  # times as large


@dataclass(frozen=True)
class Arc:
    """A fit of parabolas. gravity: short sides a second². deviation: the root mean squared distance from them, in short sides."""

    gravity: float
    deviation: float


def gravity_arc(centres: Float[ndarray, "T 2"], fps: float, short: float) -> Arc | None:
    """Fit parabolas of one gravity to a thing's way, one between each touch of the floor and the next.

    centres: (x, y) in pixels, y down, NaN where unseen; x has one speed per arc. short: the clip's short side in pixels. None if no arc has
    three frames, or if there are so few frames in all that any way would fit.
    """
    time, x, y = _seen(centres, fps, short)
    lowest = _touches(y)
    # Leave out the lowest frame, which may lie on either side of the touch.
    parts = [np.setdiff1d(part, lowest) for part in np.split(np.arange(len(y)), lowest)]
    parts = [part for part in parts if len(part) >= LEAST_OF_ARC]
    kept = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if len(kept) < 2 * len(parts) + 3:
        return None
    fall = _design(parts, kept, time)
    gravity_column = 0.5 * time[kept, None] ** 2
    down = np.linalg.lstsq(np.hstack([fall, gravity_column]), y[kept], rcond=None)[0]
    across = np.linalg.lstsq(fall, x[kept], rcond=None)[0]
    left = np.square(np.hstack([fall, gravity_column]) @ down - y[kept]) + np.square(fall @ across - x[kept])
    return Arc(gravity=float(down[-1]), deviation=float(np.sqrt(left.mean())))


@dataclass(frozen=True)
class Return:
    """How a thing returned. aside: its distance in short sides from its line before it hid. size: its area after, over that before."""

    aside: float
    size: float

    @property
    def same(self) -> bool:
        """Whether it may be the same thing: on its line, of its size. A return in another colour is tracked as another thing."""
        return self.aside <= ASIDE and 1 / GROWN <= self.size <= GROWN


def returned(centres: Float[ndarray, "T 2"], shown: Float[ndarray, "T"], short: float) -> Return | None:
    """How a thing returned after its longest time unseen; None if it never hid and came back farther along, or was seen too briefly.

    centres: as for `gravity_arc`. shown: the visible share of the thing in each frame. The visible part of a half-hidden thing moves along
    the line, not aside: so the line is certain, but the position on it is not, and is not judged.
    """
    hidden = (shown < HIDDEN) | np.isnan(centres).any(axis=1)
    seen = np.flatnonzero(~hidden)
    if len(seen) < 4 or np.diff(seen).max() < 2:
        return None
    cut = int(np.diff(seen).argmax()) + 1
    before, after = seen[:cut], seen[cut:]
    if min(len(before), len(after)) < 2:
        return None
    middle = centres[before].mean(axis=0)
    way = np.linalg.svd(centres[before] - middle)[2][0]
    way = way if (centres[before[-1]] - centres[before[0]]) @ way >= 0 else -way
    there = centres[after[len(after) // 2 :]].mean(axis=0) - middle
    if there @ way <= 0:
        return None
    return Return(aside=float(abs(there[0] * way[1] - there[1] * way[0]) / short), size=float(shown[after].max() / shown[before].max()))


class Physics(VideoMetric):
    """`gravity_deviation` (mean, lower is better) over clips that were asked to bounce, and `permanence` over clips that were asked to
    hide: the share whose thing returned on its line, of its size and shape (in another colour it is another thing).

    update(observations, events, rates, sides) takes results of `observe`, the events that prompts asked for (others are skipped), frames a
    second and short sides in pixels. A clip whose thing was not seen well enough is left out of the deviation and counts as no permanence;
    `gravity_clips` and `permanence_clips` are the numbers of clips.
    """

    totals: Tensor
    exact = ("totals",)
    undrawn = ("gravity_clips", "permanence_clips")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("totals", default=torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, observations: Sequence[Observation], events: Sequence[str | None], rates: Sequence[float], sides: Sequence[float]
    ) -> None:
        for observation, event, fps, short in zip(observations, events, rates, sides, strict=True):
            thing = observation.things[0] if observation.things else None
            if event == "bounces" and thing is not None:
                arc = gravity_arc(thing.centres, fps, short)
                if arc is not None:
                    self.totals += torch.tensor([arc.deviation, 1, 0, 0], dtype=torch.float64, device=self.totals.device)
            if event == "hides":
                back = None if thing is None else returned(thing.centres, thing.shown, short)
                kept = float(thing is not None and back is not None and back.same and thing.shapes[0] == thing.shapes[1])
                self.totals += torch.tensor([0, 0, kept, 1], dtype=torch.float64, device=self.totals.device)

    def compute(self) -> dict[str, float]:
        deviation, bounced, kept, hid = self.totals.tolist()
        found = {"gravity_clips": bounced, "permanence_clips": hid}
        if bounced:
            found["gravity_deviation"] = deviation / bounced
        if hid:
            found["permanence"] = kept / hid
        return found


def _seen(centres: ndarray, fps: float, short: float) -> tuple[ndarray, ndarray, ndarray]:
    """Time in seconds, x and y in short sides, of the frames in which a thing is seen."""
    if fps <= 0 or short <= 0:
        raise ValueError(f"fps={fps} and a short side of {short} pixels: both are above 0")
    shown = np.flatnonzero(~np.isnan(centres).any(axis=1))
    return shown / fps, centres[shown, 0] / short, centres[shown, 1] / short


def _touches(y: ndarray) -> ndarray:
    """The lowest frames (y grows downwards) between a downward and an upward way; the first and last frame count, as the rest is unseen."""
    around = np.concatenate([[-np.inf], y, [-np.inf]])
    return np.flatnonzero((y >= around[:-2]) & (y > around[2:]))


def _design(parts: list[ndarray], kept: ndarray, time: ndarray) -> ndarray:
    """Columns of the least squares fit: for each arc its own position and speed."""
    columns = np.zeros((len(kept), 2 * len(parts)))
    row = 0
    for number, part in enumerate(parts):
        columns[row : row + len(part), 2 * number] = 1
        columns[row : row + len(part), 2 * number + 1] = time[part]
        row += len(part)
    return columns
