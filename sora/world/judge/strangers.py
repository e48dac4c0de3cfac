"""Finds small, brief or grey spots in a clip that belong to none of its things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

STRONG = 55.0  # the least chroma of a spot: a codec's artefacts around edges are weaker
GREY = 55.0  # the least difference from the ground, in grey levels, of a colourless spot
STEEP = 22.0  # the least slope at a spot's border, in grey levels a pixel: the ground is softer
LEAST = 4.0  # pixels
LEAST_SHARE = 0.05  # of the largest thing's area
SOFT = 2  # pixels around a thing into which its colour may bleed

_SQUARE = np.ones((1, 3, 3), dtype=bool)
_FLAT = np.zeros((3, 3, 3), dtype=bool)
_FLAT[1] = True  # neighbours in the frame, diagonals too, never in time


def extra(
    pixels: Float[ndarray, "T H W 3"],
    strength: Float[ndarray, "T H W"],
    coloured: Bool[ndarray, "T H W"],
    own: Bool[ndarray, "T H W"],
    largest: float,
) -> float:
    """The area of spots that belong to no thing, summed over frames, in areas of the largest thing.

    strength: chroma above the ground's. coloured: where it exceeds noise. own: pixels of the things, and those that may be theirs. largest:
    area of the largest thing in pixels.
    """
    around = ndimage.binary_dilation(own, _SQUARE, iterations=SOFT)
    tinted = ndimage.binary_dilation(own | coloured, _SQUARE, iterations=SOFT + 1)
    spots = np.concatenate([_sizes(*_labelled(coloured & (strength > STRONG) & np.logical_not(around))), _grey(pixels, tinted)])
    return float(spots[spots >= max(LEAST, LEAST_SHARE * largest)].sum()) / max(largest, 1.0)


def _labelled(mask: Bool[ndarray, "T H W"]) -> tuple[ndarray, int]:
    return ndimage.label(mask, structure=_FLAT)  # pyright: ignore[reportReturnType]


def _sizes(labels: ndarray, number: int) -> ndarray:
    return np.bincount(labels.ravel(), minlength=number + 1)[1:]


def _grey(pixels: Float[ndarray, "T H W 3"], tinted: Bool[ndarray, "T H W"]) -> ndarray:
    """The pixels of each spot that differs from the ground in grey alone, has a steep border, and does not touch the edge, as bars do."""
    luma = pixels.mean(-1)
    mask = np.abs(_above_ground(luma, tinted)) > GREY
    labels, number = _labelled(mask)
    if not number:
        return np.zeros(0, dtype=np.int64)
    sizes = _sizes(labels, number) - _sizes(np.where(tinted, labels, 0), number)
    border = mask & np.logical_not(ndimage.binary_erosion(mask, _SQUARE) | tinted)
    slopes = np.hypot(*np.gradient(luma, axis=(1, 2)))
    steep = np.asarray(ndimage.median(slopes, np.where(border, labels, 0), np.arange(1, number + 1))) >= STEEP
    edge = np.concatenate([labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel()])
    steep[np.unique(edge[edge > 0]) - 1] = False
    return sizes[steep]


def _above_ground(luma: Float[ndarray, "T H W"], but: Bool[ndarray, "T H W"]) -> Float[ndarray, "T H W"]:
    """Grey levels above a plane through the background, which is the same in all frames but for one offset per frame."""
    picture = np.median(luma, axis=0)
    height, width = picture.shape
    y, x = np.mgrid[:height, :width]
    design = np.stack([np.ones(height * width), x.ravel() / width - 0.5, y.ravel() / height - 0.5], -1).astype(np.float32)
    values, free = picture.ravel(), ~but.all(0).ravel()
    fit = np.array([np.median(values), 0.0, 0.0], dtype=np.float32)
    for bound in (100.0, 60.0, 40.0):
        near = free & (np.abs(values - design @ fit) < bound)
        if near.sum() > 0.2 * len(near):
            fit = np.linalg.lstsq(design[near], values[near], rcond=None)[0]
    above = luma - (design @ fit).reshape(height, width)
    return above - np.median(above, axis=(1, 2), keepdims=True)


def may_be_theirs(
    like: Bool[ndarray, "T H W"], places: Sequence[Float[ndarray, "T 2"]], reaches: Sequence[float]
) -> Bool[ndarray, "T H W"]:
    """Discs, in an array like `like`, around the positions (row, column; NaN: none) of things in frames where they are (half) hidden."""
    found = np.zeros_like(like)
    count, height, width = like.shape
    y, x = np.mgrid[:height, :width]
    for place, reach in zip(places, reaches, strict=True):
        for t in range(count):
            if np.isfinite(place[t]).all():
                found[t] |= np.hypot(y - place[t, 0], x - place[t, 1]) <= reach
    return found
