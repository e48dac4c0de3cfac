"""Pairs of clips whose perceptual hashes are close, found by sorting: time and memory grow linearly (but for the sort) with the hashes.

Sorted by their first bits, two hashes that differ in a few others stand near each other. So all hashes are sorted several times, each time
rotated to begin with other bits, and each is compared with the few that follow it. However many clips look alike, the number of comparisons
per hash is fixed; long runs of alike clips are chained through their neighbours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64
from numpy import ndarray

ROTATIONS = range(0, 64, 8)  # bits by which the hashes are rotated, one sort each
WINDOW = 8  # following hashes, of other clips or at either end of a clip's own run, with which each is compared
BITS = 12  # greatest number of bits in which hashes of pictures that may be the same differ
_PART = 1 << 18  # hashes that are compared at once


def close_pairs(hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], mirror: int, *, guards: int) -> Int[ndarray, "m 3"]:
    """Pairs (one, other, mirrored) of clips with close hashes, sorted, each once, with one < other.

    hashes: v of each picture. clips: the clip of each picture, as a number; clips are sorted by key, so that the pairs do not depend on
    the order of the input. mirror: the bits that mirroring a picture flips, 0 if there is none. guards: clips from that number on are not
    compared with each other.
    """
    turned = [hashes] if mirror == 0 else [hashes, hashes ^ np.uint64(mirror)]
    values = np.concatenate([part.T.ravel() for part in turned])
    count = hashes.size
    owners = np.tile(np.asarray(clips, np.int64), values.size // max(len(clips), 1))
    pairs = np.empty(0, np.int64)
    for rotation in ROTATIONS:
        turned_left = (values << np.uint64(rotation)) | (values >> np.uint64((64 - rotation) % 64))
        order = np.argsort(turned_left if rotation else values, kind="stable")
        owner = owners[order]
        # Of a run of one clip's hashes only both ends are compared: a still clip would hide its neighbours from each other.
        differs = np.flatnonzero(owner[1:] != owner[:-1])
        ends = np.unique(np.concatenate([differs, differs + 1]))
        order, owner = order[ends], owner[ends]
        found = _compared(values[order], owner, order >= count, guards)
        pairs = np.unique(np.concatenate([pairs, found]))
    ones, rest = np.divmod(pairs, _WIDTH)
    return np.stack([ones, rest >> 1, rest & 1], axis=1)


_WIDTH = 1 << 32  # one pair in one number: the first clip, the second, whether mirrored


def _compared(values: UInt64[ndarray, " n"], owner: Int[ndarray, " n"], mirrored: ndarray, guards: int) -> Int[ndarray, " m"]:
    """The close pairs among sorted hashes, each with those that follow it, packed into one number each."""
    found = []
    for start in range(0, len(values), _PART):
        stop = min(start + _PART, len(values))
        for step in range(1, WINDOW + 1):
            last = min(stop, len(values) - step)
            if last <= start:
                break
            close = start + np.flatnonzero(np.bitwise_count(values[start:last] ^ values[start + step : last + step]) <= BITS)
            one, other = owner[close], owner[close + step]
            low, high = np.minimum(one, other), np.maximum(one, other)
            wanted = (low != high) & (low < guards)
            packed = low * _WIDTH + 2 * high + (mirrored[close] != mirrored[close + step])
            found.append(np.unique(packed[wanted]))
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
