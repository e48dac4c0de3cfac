"""Pairs of clips whose perceptual hashes are close, found by sorting: time and memory grow linearly (but for the sort) with the hashes.

Sorted by their first bits, two hashes that differ in a few others stand near each other. So all hashes are sorted several times, each time
rotated to begin with other bits, and each is compared with the few that follow it. However many clips look alike, the number of comparisons
per hash is fixed; long runs of alike clips are chained through their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64
from numpy import ndarray

ROTATIONS = range(0, 64, 8)  # bits by which the hashes are rotated, one sort each
WINDOW = 8  # following hashes, of other clips or at either end of a clip's own run, with which each is compared
BITS = 10  # greatest number of bits in which hashes of pictures that may be the same differ
CLEAR, HITS = 6, 3  # one pair of hashes suggests a pair of clips if it differs in so few bits; else so many are needed, against chance
SHOWN = (
    0.25  # share of bits that differ, of those by which hashes are sorted without those that neighbours share, up to which the rest is read
)
_PART = 1 << 16  # hashes that are compared at once


def close_pairs(hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], mirror: int, *, guards: int) -> Int[ndarray, "m 3"]:
    """Pairs (one, other, mirrored) of clips with close hashes, sorted, each once, with one < other.

    hashes: v of each picture, of the whole first, then of parts. clips: the clip of each picture, as a number; clips are numbered by key,
    so that the pairs do not depend on the order of the input. mirror: the bits that mirroring a picture flips, 0 if there is none. guards:
    clips from that number on are not compared with each other.
    """
    table = _Hashes.of(hashes, clips, mirror)
    pairs, hits = np.empty(0, np.int64), np.empty(0, np.int64)
    numbers = np.empty_like(table.values)
    for rotation in ROTATIONS:
        _sort(table, rotation, numbers)
        found = [(pairs, hits), *_close(table, numbers, guards)]
        pairs, hits = _counted(*(np.concatenate(column) for column in zip(*found, strict=True)))
    ones, rest = np.divmod(pairs[hits >= HITS], _WIDTH)
    return np.stack([ones, rest >> 1, rest & 1], axis=1)


class _Hashes(NamedTuple):
    """All hashes of all pictures, `kinds` of each: of the whole, of its parts, and of the whole mirrored. Memory near one another is used
    together: a picture's hashes stand in a row."""

    values: UInt64[ndarray, " n*kinds"]
    clips: Int[ndarray, " n"]
    kinds: int
    mirrored: int  # the kind that is, or `kinds` if there is none

    @classmethod
    def of(cls, hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], mirror: int) -> _Hashes:
        columns = [hashes, hashes[:, :1] ^ np.uint64(mirror)] if mirror else [hashes]
        values = np.concatenate(columns, axis=1)
        return cls(values.ravel(), np.asarray(clips, np.int32), values.shape[1], hashes.shape[1])


def _sort(table: _Hashes, rotation: int, numbers: UInt64[ndarray, " n"]) -> None:
    """Write the hashes, rotated to the left, to `numbers`, sorted by as many of their first bits as leave room for the hash's number in
    the last ones.

    Sorting such numbers is several times as fast as sorting their places, and reads memory in order.
    """
    width = _bits_of(table)
    for start in range(0, len(numbers), _PART):
        values = table.values[start : start + _PART]
        turned = (values << np.uint64(rotation)) | (values >> np.uint64(64 - rotation)) if rotation else values
        places = np.arange(start, start + len(values), dtype=np.uint64)
        np.bitwise_or((turned >> width) << width, places, out=numbers[start : start + _PART])
    numbers.sort()


def _close(table: _Hashes, numbers: UInt64[ndarray, " n"], guards: int) -> Iterator[tuple[Int[ndarray, " m"], Int[ndarray, " m"]]]:
    """The close pairs among sorted hashes, each with those that follow it, packed into one number each, and their hits.

    Of a run of one clip's hashes only both ends are compared: a still clip would hide its neighbours from each other.
    """
    width = _bits_of(table)
    last = (np.uint64(1) << width) - np.uint64(1)
    # Neighbours share about as many first bits as a hash's number has.
    most = max(3, int(SHOWN * (64 - 2 * int(width))))
    rest = np.empty(0, np.uint64)  # the last hashes of a part, with which the next one begins
    for start in range(0, len(numbers), _PART):
        part = numbers[start : start + _PART]
        owner = table.clips[(part & last).view(np.int64) // table.kinds]
        ends = np.ones(len(part), bool)
        ends[1:-1] = (owner[1:-1] != owner[:-2]) | (owner[1:-1] != owner[2:])
        part = np.concatenate([rest, part[ends]])
        shown, number = part >> width, (part & last).view(np.int64)
        pairs, hits = [], []
        for step in range(1, WINDOW + 1):
            # Only what is close in the first bits is looked up.
            near = np.flatnonzero(np.bitwise_count(shown[:-step] ^ shown[step:]) <= most)
            found = _pairs(table, number[near], number[near + step], guards)
            pairs.append(found[0])
            hits.append(found[1])
        rest = part[-WINDOW:]
        yield _counted(np.concatenate(pairs), np.concatenate(hits))


def _pairs(
    table: _Hashes, one: Int[ndarray, " n"], other: Int[ndarray, " n"], guards: int
) -> tuple[Int[ndarray, " m"], Int[ndarray, " m"]]:
    """Of pairs of hashes those that are close, as packed pairs of clips and their hits."""
    bits = np.bitwise_count(table.values[one] ^ table.values[other])
    close = np.flatnonzero(bits <= BITS)
    (picture, kind), (pictures, kinds) = np.divmod(one[close], table.kinds), np.divmod(other[close], table.kinds)
    clip, clips = table.clips[picture].astype(np.int64), table.clips[pictures].astype(np.int64)
    low, high = np.minimum(clip, clips), np.maximum(clip, clips)
    first, second = np.where(clip < clips, kind, kinds), np.where(clip < clips, kinds, kind)
    # Two mirrored hashes say what the two others say; so do a mirrored and a whole one in either order.
    new = (first != table.mirrored) | ((second != table.mirrored) & (second != 0))
    wanted = (low != high) & (low < guards) & new
    mirrored = (first == table.mirrored) != (second == table.mirrored)
    return (low * _WIDTH + 2 * high + mirrored)[wanted], np.where(bits[close][wanted] <= CLEAR, HITS, 1)


def _bits_of(table: _Hashes) -> np.uint64:
    """How many bits the number of a hash needs."""
    return np.uint64(max(len(table.values) - 1, 1).bit_length())


def _counted(pairs: Int[ndarray, " n"], hits: Int[ndarray, " n"]) -> tuple[Int[ndarray, " m"], Int[ndarray, " m"]]:
    """Each pair once, sorted, with the sum of its hits."""
    unique, places = np.unique(pairs, return_inverse=True)
    return unique, np.bincount(places, hits, minlength=len(unique)).astype(np.int64)


_WIDTH = 1 << 32  # one pair in one number: the first clip, the second, whether mirrored
