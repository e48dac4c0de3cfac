"""Pairs of clips whose perceptual hashes are close, found by sorting: time and memory grow linearly (but for the sort) with the hashes.

Sorted by their first bits, two hashes that differ in a few others stand near each other. So all hashes are sorted several times, each time
rotated to begin with other bits, and each is compared with the few that follow it. However many clips look alike, the number of comparisons
per hash is fixed; long runs of alike clips are chained through their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt64
from numpy import ndarray

ROTATIONS = range(0, 64, 8)  # bits by which the hashes are rotated, one sort each
WINDOW = 8  # following hashes, of other clips or at either end of a clip's own run, with which each is compared
BITS = 12  # greatest number of bits in which hashes of pictures that may be the same differ
CLEAR, HITS = 6, 3  # one pair of hashes suggests a pair of clips if it differs in so few bits; else so many are needed, against chance
_PART = 1 << 16  # hashes that are compared at once


def close_pairs(hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], mirror: int, *, guards: int) -> Int[ndarray, "m 3"]:
    """Pairs (one, other, mirrored) of clips with close hashes, sorted, each once, with one < other.

    hashes: v of each picture. clips: the clip of each picture, as a number; clips are sorted by key, so that the pairs do not depend on
    the order of the input. mirror: the bits that mirroring a picture flips, 0 if there is none. guards: clips from that number on are not
    compared with each other.
    """
    turned = [hashes] if mirror == 0 else [hashes, hashes ^ np.uint64(mirror)]
    values = np.concatenate([part.T.ravel() for part in turned])
    owners = np.tile(np.asarray(clips, np.int32), values.size // max(len(clips), 1))
    numbers = np.arange(values.size, dtype=np.uint64)
    width = np.uint64(max(values.size - 1, 1).bit_length())
    pairs, hits = np.empty(0, np.int64), np.empty(0, np.int64)
    for rotation in ROTATIONS:
        # The first bits, and behind them the number of the hash: sorting one array of numbers is several times as fast as ranking it.
        sorted_ = (values << np.uint64(rotation)) | (values >> np.uint64(64 - rotation)) if rotation else values.copy()
        sorted_ >>= width
        sorted_ <<= width
        sorted_ |= numbers
        sorted_.sort()
        sorted_ &= (np.uint64(1) << width) - np.uint64(1)
        found = [(pairs, hits), *_compared(values, owners, sorted_.view(np.int64), hashes.size, guards)]
        pairs, hits = _counted(*(np.concatenate(column) for column in zip(*found, strict=True)))
    pairs = pairs[hits >= HITS]
    ones, rest = np.divmod(pairs, _WIDTH)
    return np.stack([ones, rest >> 1, rest & 1], axis=1)


_WIDTH = 1 << 32  # one pair in one number: the first clip, the second, whether mirrored


def _compared(
    values: UInt64[ndarray, " n"], owners: Int[ndarray, " n"], order: Int[ndarray, " n"], unturned: int, guards: int
) -> Iterator[tuple[Int[ndarray, " m"], Int[ndarray, " m"]]]:
    """The close pairs among hashes in this order, each with those that follow it, packed into one number each, and their hits.

    Of a run of one clip's hashes only both ends are compared: a still clip would hide its neighbours from each other.
    """
    rest = np.empty(0, np.int64)  # the last hashes of a part, with which the next one begins
    for start in range(0, len(order), _PART):
        part = order[start : start + _PART]
        owner = owners[part]
        ends = np.ones(len(part), bool)
        ends[1:-1] = (owner[1:-1] != owner[:-2]) | (owner[1:-1] != owner[2:])
        part = np.concatenate([rest, part[ends]])
        owner, value, plain = owners[part], values[part], part < unturned
        pairs, hits = [], []
        for step in range(1, WINDOW + 1):
            bits = np.bitwise_count(value[:-step] ^ value[step:])
            close = np.flatnonzero(bits <= BITS)
            one, other = owner[close].astype(np.int64), owner[close + step].astype(np.int64)
            low, high = np.minimum(one, other), np.maximum(one, other)
            # The first clip's hash is unturned: a pair of two mirrored hashes says what that of the two others says.
            first = np.where(one < other, plain[close], plain[close + step])
            wanted = (low != high) & (low < guards) & first
            pairs.append((low * _WIDTH + 2 * high + (plain[close] != plain[close + step]))[wanted])
            hits.append(np.where(bits[close][wanted] <= CLEAR, HITS, 1))
        rest = part[-WINDOW:]
        yield _counted(np.concatenate(pairs), np.concatenate(hits))


def _counted(pairs: Int[ndarray, " n"], hits: Int[ndarray, " n"]) -> tuple[Int[ndarray, " m"], Int[ndarray, " m"]]:
    """Each pair once, sorted, with the sum of its hits."""
    unique, places = np.unique(pairs, return_inverse=True)
    return unique, np.bincount(places, hits, minlength=len(unique)).astype(np.int64)
