"""Measures whether a thing stays the same through a clip: seen, of one colour, shape and size, moving on without leaps.

One fit over all frames describes the clip as a whole; this module compares its thirds with each other, and its steps among themselves. It
returns numbers; `adherence` has the thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sora.world.judge.silhouettes import ShapeFit, name_shape, normalise

EDGE = 8.0  # grey levels over two pixels, from which on a line of pixels is a bar's edge
ALONG = 0.5  # the share of a line's pixels that may be weaker: part of the ground may have the bar's shade
FLAT = 10.0  # grey levels from its median within which nine tenths of a bar's inside lie
LEAST_BAR = 1.5  # the least width of a bar, in radii of the thing that it hides
REACH = 1.6  # the farthest point of any shape from its centre, in radii of the circle of equal area
SHOWN = 0.5  # of a thing's usual area, from which on it counts as seen
CORE = 0.7  # of the soft mask, from which on a pixel belongs wholly to the thing
PARTS = 3
LAG = 1 / 6  # of the clip, the time over which a step is measured


@dataclass(frozen=True)
class Steadiness:
    """How far a thing changes in a clip.

    seen: share of the frames in which it is seen, of those in which no bar covers its place. colour: the greatest distance between its mean
    chroma in two thirds, relative to the length of its mean chroma. size: the ratio of its largest to its smallest usual area in a third.
    shape: how much better, relative, another shape fits in some third than the shape of the whole clip, 0..1. turning: the share of the
    fit's error that vanishes if each frame may have its own angle, 0..1: high if it does not turn at one rate.
    """

    seen: float
    colour: float
    size: float
    shape: float
    turning: float


def thirds(frames: ndarray, count: int) -> list[ndarray]:
    """The chosen frame numbers of each third of a clip of `count` frames, without empty thirds."""
    parts = [frames[(frames >= start) & (frames < end)] for start, end in _bounds(count)]
    return [part for part in parts if len(part)]


def _bounds(count: int) -> list[tuple[int, int]]:
    cuts = [round(count * part / PARTS) for part in range(PARTS + 1)]
    return list(pairwise(cuts))


def measure(
    masks: Float[ndarray, "T H W"],
    areas: Float[ndarray, "T"],
    centres: Float[ndarray, "T 2"],
    *,
    chroma: Float[ndarray, "T H W 2"],
    whole: ndarray,
    judged: Bool[ndarray, "T"],
    usual: float,
    fit: ShapeFit,
) -> Steadiness:
    """Measure one thing. whole: numbers of the frames in which nothing cuts its outline. judged: True where no bar hides it. usual: its
    usual area in pixels. fit: of the whole clip."""
    seen = float((areas[judged] >= SHOWN * usual).mean()) if judged.any() else 1.0
    parts = thirds(whole, len(masks))
    colours = np.array([_colour(masks[part], chroma[part]) for part in parts]).reshape(-1, 2)
    sizes = [float(np.median(areas[part])) for part in parts]
    shape = 0.0
    for part in parts:
        there = fitted(masks, areas, centres, part)
        shape = max(shape, 1.0 - there.errors[there.shape] / (there.errors[fit.shape] + 1e-12))
    return Steadiness(
        seen=seen,
        colour=_spread(colours),
        size=max(sizes) / min(sizes) if sizes else 1.0,
        shape=shape,
        turning=fit.wobble,
    )


def fitted(masks: Float[ndarray, "T H W"], areas: Float[ndarray, "T"], centres: Float[ndarray, "T 2"], frames: ndarray) -> ShapeFit:
    """The shape that fits a thing best in the frames with these numbers."""
    return name_shape(np.stack([normalise(masks[t], tuple(centres[t]), float(areas[t])) for t in frames]), frames)


def _colour(masks: ndarray, chroma: ndarray) -> ndarray:
    core = masks >= CORE
    return chroma[core].mean(0) if core.any() else np.zeros(2)


def _spread(colours: Float[ndarray, "P 2"]) -> float:
    if len(colours) < 2:
        return 0.0
    length = float(np.linalg.norm(colours.mean(0)))
    return float(max(np.linalg.norm(one - two) for one in colours for two in colours)) / max(length, 1e-6)


def way(centres: Float[ndarray, "T 2"], seen: ndarray) -> Float[ndarray, "T 2"]:
    """Positions in all frames: interpolated linearly where a thing is unseen, and extrapolated at its mean pace at both ends."""
    time = np.arange(len(centres))
    places = np.stack([np.interp(time, seen, centres[seen, axis]) for axis in (0, 1)], -1)
    first, last = seen[0], seen[-1]
    pace = (centres[last] - centres[first]) / max(last - first, 1)
    return places + (np.minimum(time - first, 0) + np.maximum(time - last, 0))[:, None] * pace


def in_view(
    pixels: Float[ndarray, "T H W 3"], busy: Bool[ndarray, "T H W"], places: Float[ndarray, "T 2"], radius: float
) -> Float[ndarray, "T"]:
    """The share of a disc at a thing's position that no bar covers, in each frame.

    busy: pixels of things. places: (row, column) where the thing is seen, or where it should be. radius: of the circle of the thing's area,
    in pixels.
    """
    shown = np.ones(len(places))
    luma = np.where(busy, np.nan, pixels.mean(-1))
    empty = np.isnan(luma).all(0)
    luma[:, empty] = 0.0
    picture = np.nanmedian(luma, axis=0)
    picture[empty] = np.nan
    for axis in (0, 1):
        for low, high in _bars(picture if axis == 1 else picture.T):
            if high - low >= LEAST_BAR * radius:
                shown -= _left_of((high - places[:, axis]) / radius) - _left_of((low - places[:, axis]) / radius)
    return shown.clip(0.0, 1.0)


def _left_of(place: Float[ndarray, "T"]) -> Float[ndarray, "T"]:
    """The share of the unit disc on the lower side of a line."""
    place = place.clip(-1.0, 1.0)
    return 0.5 + (np.arcsin(place) + place * np.sqrt(1.0 - place**2)) / np.pi


def _bars(picture: Float[ndarray, "H W"]) -> list[tuple[float, float]]:
    """Where upright bars begin and end: neighbouring columns of edges with one shade between them."""
    steps = np.abs(picture[:, 2:] - picture[:, :-2])
    known = np.isfinite(steps).sum(0) >= 0.3 * len(picture)
    score = np.zeros(steps.shape[1])
    score[known] = np.nanquantile(steps[:, known], ALONG, axis=0)
    padded = np.pad(score, 2)
    highest = np.max([padded[shift : shift + len(score)] for shift in range(5)], axis=0)
    edges = np.flatnonzero((score == highest) & (score > EDGE)) + 1.0
    edges = edges[np.append(True, np.diff(edges) > 1)] if len(edges) else edges  # the first of neighbouring columns
    return [(low, high) for low, high in pairwise(edges.tolist()) if _flat(picture[:, int(low) + 2 : int(high) - 1])]


def _flat(inside: ndarray) -> bool:
    known = inside[np.isfinite(inside)]
    return bool(known.size) and float(np.quantile(np.abs(known - np.median(known)), 0.9)) <= FLAT


def progress(places: Float[ndarray, "N"], when: ndarray) -> float:
    """How steadily a thing moves on, up to 1: the share of steps, over a sixth of the time each, that advance by a third of the mean pace
    or more; less if more of the way goes back than that.

    places: along the way, in any unit. when: their frame numbers, ascending.
    """
    span = when[-1] - when[0] if len(when) else 0
    if span == 0 or places[-1] <= places[0]:
        return 0.0
    pace = (places[-1] - places[0]) / span
    lag = max(1.0, round(LAG * span))
    later = np.searchsorted(when, when + lag)
    first = np.flatnonzero(later < len(when))
    gone = (places[later[first]] - places[first]) / (when[later[first]] - when[first])
    back = -gone[gone < 0].sum() / max(gone[gone > 0].sum(), 1e-9)
    return float(min((gone >= pace / 3).mean(), 1.0 - back))


def leap(places: Float[ndarray, "N D"], when: ndarray) -> tuple[float, float]:
    """The longest step from a frame to the next, and the median step, in the unit of `places`."""
    if len(when) < 2:
        return 0.0, 0.0
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1) / np.diff(when)
    return float(steps.max()), float(np.median(steps))
