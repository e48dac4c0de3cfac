"""Whether two clips show the same, picture by picture: the confirmation of what close hashes suggest.

The small pictures of two clips are aligned in time, in scale (one may be the middle part of the other) and in brightness. What differs
after that is weighed by what small shifts in place would explain.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64
from numpy import ndarray

from sora.curation.duplicates.signature import COLOURS, PERIOD, SIDE, Signature, informative, mirrored

ZOOMS = (0.0, 0.04, 0.08, 0.12)  # shares of a picture's sides that the other clip may have cut off
LEVELS = 3.0  # grey levels by which equal pictures differ through coding
SLIP = 0.5  # pixels of the small picture by which equal places may be apart
WORST = 10, 6  # places of luma and of colour, those that differ most, over which the error is averaged
CLIPPED = 8  # levels from black and white within which a place may be clipped
BRIGHTER = 2.0  # greatest ratio of contrasts
SAME, SAME_ALONE = 1.15, 0.9  # greatest error of pictures that show the same; of one picture that stands for a whole clip
STRETCH = 1.2  # greatest ratio of the clips' proportions: cropping and imprecise bars change them, another picture often has others
MOST = 0.8  # share of the pictures common to both clips that must be the same
HOPELESS = 6.0  # an error without zoom that no zoom makes good
NEAR = 12  # greatest number of bits in which the hashes of two pictures differ that suggest an alignment in time
TRIED = 3  # alignments in time with the most, and with the closest, pictures


class Alignment(NamedTuple):
    """How the second clip lies beside the first. shift: seconds from the first one's start to the second one's. error: see `SAME`."""

    shift: float
    error: float


def aligned(one: Signature, other: Signature, *, mirror: bool, overlap: float) -> Alignment | None:
    """The alignment in which the clips show the same for `overlap` of the shorter one, or None. mirror: whether one is mirrored.

    A clip of a single picture (under half a second, or an image) is the same as another such clip only: one picture says nothing about
    motion.
    """
    if (len(one.pictures) == 1) != (len(other.pictures) == 1) or max(one.aspect, other.aspect) > STRETCH * min(one.aspect, other.aspect):
        return None
    if one.pictures.tobytes() > other.pictures.tobytes():  # so that neither depends on which comes first
        found = aligned(other, one, mirror=mirror, overlap=overlap)
        return found and Alignment(-found.shift, found.error)
    first = Signature(mirrored(one.hashes), mirrored_pictures(one.pictures), one.aspect) if mirror else one
    best = None
    for offset in _offsets(first, other, overlap):
        begin, start = max(0, offset), max(0, -offset)
        length = min(len(first.pictures) - begin, len(other.pictures) - start)
        pair = first.pictures[begin : begin + length], other.pictures[start : start + length]
        error = difference(*pair)
        if error <= (SAME if length > 1 else SAME_ALONE) and (best is None or error < best.error):
            best = Alignment(offset * PERIOD, error)
    return best


def difference(one: UInt8[ndarray, "k 384"], other: UInt8[ndarray, "k 384"]) -> float:
    """The error that all but a fifth of the pictures stay within, in the best alignment of scale and brightness; infinite where all of
    them are plain in either clip. Errors of about 1 are within what coding, scaling and small shifts explain."""
    telling = informative(one) & informative(other)
    if not telling.any():
        return float("inf")
    place = max(0, int(np.ceil(MOST * len(one))) - 1)
    # The one with less contrast is fitted to the other; equal ones in an order that does not depend on which comes first.
    one, other = sorted((one, other), key=lambda pictures: (pictures[:, : SIDE * SIDE].std(), pictures.tobytes()))
    plain = np.sort(_errors(one, other, ((0, 0),)), axis=1)[0, place]
    if plain <= SAME_ALONE or plain > HOPELESS:
        return float(plain)
    zooms = [(0, zoom) for zoom in range(1, len(ZOOMS))] + [(zoom, 0) for zoom in range(1, len(ZOOMS))]
    return float(min(plain, np.sort(_errors(one, other, tuple(zooms)), axis=1)[:, place].min()))


def _errors(one: UInt8[ndarray, "k 384"], other: UInt8[ndarray, "k 384"], zooms: tuple[tuple[int, int], ...]) -> Float[ndarray, "z k"]:
    """The error of each picture for each pair of zooms: the mean over the places that differ most, in luma or in colour."""
    (luma, colour), (lumas, colours) = _zoomed(one, [zoom for zoom, _ in zooms]), _zoomed(other, [zoom for _, zoom in zooms])
    gain, offset = _brightness(luma, lumas)
    fitted = np.clip(gain * luma + offset, 0, 255)
    room = LEVELS * np.sqrt(gain) + SLIP * np.maximum(_slope(fitted), _slope(lumas))
    inner = (np.abs(fitted - lumas) / room)[..., 1:-1, 1:-1]
    worst = np.sort(inner.reshape(*inner.shape[:2], -1), axis=-1)[..., -WORST[0] :].mean(-1)
    root = np.sqrt(gain)[..., None]
    room = LEVELS + SLIP * np.maximum(_slope(colour), _slope(colours))
    wrong = np.abs(colour * root - colours / root) / room
    return np.maximum(worst, np.sort(wrong.reshape(*wrong.shape[:2], -1), axis=-1)[..., -WORST[1] :].mean(-1))


def _brightness(luma: Float[ndarray, "z k h w"], lumas: Float[ndarray, "z k h w"]) -> tuple[ndarray, ndarray]:
    """Gain (1 or more) and offset, one for all pictures of a zoom, that bring `luma` nearest to `lumas`, where neither is clipped and
    without the fifth of the places that fits least."""
    x, y = luma.reshape(len(luma), -1), lumas.reshape(len(lumas), -1)
    inside = (np.minimum(x, y) > CLIPPED) & (np.maximum(x, y) < 255 - CLIPPED)
    inside |= inside.sum(1, keepdims=True) < SIDE * SIDE / 8
    weights, rows = inside.astype(np.float32), np.arange(len(x))
    outside = (~inside).sum(1)
    rank = outside + (0.8 * (x.shape[1] - outside - 1)).astype(int)
    for _ in range(3):
        total = weights.sum(1, keepdims=True)
        mean_x, mean_y = (weights * x).sum(1, keepdims=True) / total, (weights * y).sum(1, keepdims=True) / total
        variance = (weights * (x - mean_x) ** 2).sum(1, keepdims=True) / total
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum(1, keepdims=True) / total
        gain = np.clip(covariance / np.maximum(variance, 1e-3), 1.0, BRIGHTER)
        offset = mean_y - gain * mean_x
        residual = np.abs(gain * x + offset - y)
        limit = np.sort(np.where(inside, residual, -1.0), axis=1)[rows, rank] + 0.5
        weights = (inside & (residual <= limit[:, None])).astype(np.float32)
    return gain[..., None, None], offset[..., None, None]


def _offsets(one: Signature, other: Signature, overlap: float) -> list[int]:
    """Offsets of the second clip from the first, in pictures, that hashes suggest, among those with enough pictures in common."""
    count, counts = len(one.hashes), len(other.hashes)
    least = max(1, int(np.ceil(overlap * min(count, counts))))
    least = max(least, min(2, count, counts))
    sums, hits = np.zeros(count + counts - 1), np.zeros(count + counts - 1)
    for place in range(count):
        bits = _bits(one.hashes[place], other.hashes)
        # The offset place - (picture of the other) stands at index offset + counts - 1.
        row = slice(place, place + counts)
        sums[row] += bits[::-1]
        hits[row] += bits[::-1] <= NEAR
    offsets = np.arange(-(counts - 1), count)
    common = np.minimum(count - np.maximum(offsets, 0), counts - np.maximum(-offsets, 0))
    able = np.flatnonzero((common >= least) & (hits > 0))
    most = able[np.lexsort((able, -hits[able]))][:TRIED]
    closest = able[np.lexsort((able, sums[able] / common[able]))][:TRIED]
    return [int(offsets[index]) for index in dict.fromkeys([*closest.tolist(), *most.tolist()])]


def _bits(one: UInt64[ndarray, " v"], other: UInt64[ndarray, "n v"]) -> Int[ndarray, " n"]:
    """In how many bits the whole of one picture differs from some part of each other, or some part of it from the whole other."""
    whole = np.bitwise_count(one[0] ^ other).min(1)
    return np.minimum(whole, np.bitwise_count(one[None, :] ^ other[:, :1]).min(1)).astype(np.int64)


def mirrored_pictures(pictures: UInt8[ndarray, "n 384"]) -> UInt8[ndarray, "n 384"]:
    """The small pictures of the mirrored clip."""
    count = len(pictures)
    luma = pictures[:, : SIDE * SIDE].reshape(count, SIDE, SIDE)[..., ::-1]
    colour = pictures[:, SIDE * SIDE :].reshape(count, 2 * COLOURS, COLOURS)[..., ::-1]
    return np.concatenate([luma.reshape(count, -1), colour.reshape(count, -1)], axis=1)


def _zoomed(pictures: UInt8[ndarray, "k 384"], zooms: list[int]) -> tuple[Float[ndarray, "z k 16 16"], Float[ndarray, "z k 2 8 8"]]:
    """Luma, and colour about 0, of the middle parts of pictures for each zoom."""
    values = pictures.astype(np.float32)
    luma = values[:, : SIDE * SIDE].reshape(1, -1, SIDE, SIDE)
    colour = values[:, SIDE * SIDE :].reshape(1, -1, 2, COLOURS, COLOURS) - 128
    fine, coarse = _zooming(SIDE)[zooms][:, None], _zooming(COLOURS)[zooms][:, None, None]
    return fine @ luma @ fine.swapaxes(-1, -2), coarse @ colour @ coarse.swapaxes(-1, -2)


@cache
def _zooming(side: int) -> Float[ndarray, "z side side"]:
    """For each zoom the matrix that takes the values along one side to those of the middle part: means over equal lengths."""
    places = np.arange(side)
    matrices = []
    for cut in ZOOMS:
        begin = side * cut / 2 + places[:, None] * (1 - cut)
        matrices.append(np.clip(np.minimum(begin + 1 - cut, places + 1) - np.maximum(begin, places), 0, None) / (1 - cut))
    return np.stack(matrices).astype(np.float32)


def _slope(values: Float[ndarray, "*n h w"]) -> Float[ndarray, "*n h w"]:
    """The greatest difference of each place from those above, below and beside it."""
    down = np.abs(np.diff(values, axis=-2))
    across = np.abs(np.diff(values, axis=-1))
    slope = np.zeros_like(values)
    for part, difference_ in ((np.s_[..., :-1, :], down), (np.s_[..., 1:, :], down), (np.s_[..., :-1], across), (np.s_[..., 1:], across)):
        np.maximum(slope[part], difference_, out=slope[part])
    return slope
