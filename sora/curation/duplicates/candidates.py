"""Pairs of clips whose perceptual hashes are close, found by sorting: time and memory grow linearly with the hashes.

Sorted by their first bits, two hashes that differ in a few others stand near each other. So all hashes are sorted several times, each time
rotated to begin with other bits, and each is compared with the few that follow it. However many clips look alike, the number of comparisons
per hash is fixed; long runs of alike clips are chained through their neighbours. Hashes are first dealt by their first bits to buckets that
fit a processor's cache, each of which is sorted and compared by itself: a sort of all would take more time per hash the more there are.
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
CHUNK = 1 << 17  # hashes that are dealt at once
BUCKET = 1 << 16  # hashes that are sorted at once, about; at most 256 buckets
_KIND = 4  # bits of a tag that hold the kind


def close_pairs(hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], mirror: int, *, guards: int) -> Int[ndarray, "m 3"]:
    """Pairs (one, other, mirrored) of clips with close hashes, sorted, each once, with one < other.

    hashes: v of each picture, of the whole first, then of parts; at most 14 parts. clips: the clip of each picture, as a number; clips are
    numbered by key, so that the pairs do not depend on the order of the input. mirror: the bits that mirroring a picture flips, 0 if there
    is none. guards: clips from that number on are not compared with each other. Parts are compared with wholes, not with parts.

    Memory: 16 bytes for each hash, and for the mirrored one of each picture, besides the arguments.
    """
    dealt = _Dealt.empty(len(hashes), hashes.shape[1], mirror)
    pairs, hits = np.empty(0, np.int64), np.empty(0, np.int64)
    for rotation in ROTATIONS:
        dealt.fill(hashes, clips, rotation)
        found = [(pairs, hits), *(_close(*bucket, hashes.shape[1], guards) for bucket in dealt.buckets())]
        pairs, hits = _counted(*(np.concatenate(column) for column in zip(*found, strict=True)))
    ones, rest = np.divmod(pairs[hits >= HITS], _WIDTH)
    return np.stack([ones, rest >> 1, rest & 1], axis=1)


class _Dealt(NamedTuple):
    """Rotated hashes with their tags (clip and kind), in chunks, each sorted by the first bits. Memory is read and written in order: a
    lookup at random places takes longer the more there are.

    kinds: hashes of a picture: of the whole, of its parts, and of the whole mirrored. bits: first ones, by which hashes are dealt. bounds:
    where each bucket begins in each chunk.
    """

    values: UInt64[ndarray, " n*kinds"]
    tags: Int[ndarray, " n*kinds"]
    mirror: int
    kinds: int
    bits: int
    bounds: list[list[int]]

    @classmethod
    def empty(cls, pictures: int, kinds: int, mirror: int) -> _Dealt:
        kinds += bool(mirror)
        count = pictures * kinds
        return cls(np.empty(count, np.uint64), np.empty(count, np.int64), mirror, kinds, min(8, (count // BUCKET).bit_length()), [])

    def fill(self, hashes: UInt64[ndarray, "n v"], clips: Int[ndarray, " n"], rotation: int) -> None:
        self.bounds.clear()
        step = max(1, CHUNK // self.kinds)
        kinds = np.arange(self.kinds)
        for start in range(0, len(hashes), step):
            part = hashes[start : start + step]
            values = (np.concatenate([part, part[:, :1] ^ np.uint64(self.mirror)], axis=1) if self.mirror else part).ravel()
            tags = ((clips[start : start + step, None].astype(np.int64) << _KIND) | kinds).ravel()
            turned = (values << np.uint64(rotation)) | (values >> np.uint64(64 - rotation)) if rotation else values
            first = (turned >> np.uint64(64 - self.bits)).astype(np.uint8) if self.bits else np.zeros(len(turned), np.uint8)
            order = np.argsort(first, kind="stable")  # of octets: a radix sort, linear
            begin = start * self.kinds
            np.take(turned, order, out=self.values[begin : begin + len(order)])
            np.take(tags, order, out=self.tags[begin : begin + len(order)])
            counts = np.bincount(first, minlength=1 << self.bits)
            self.bounds.append([begin, *(begin + np.cumsum(counts)).tolist()])

    def buckets(self) -> Iterator[tuple[UInt64[ndarray, " m"], Int[ndarray, " m"]]]:
        """The hashes of all chunks that begin with the same bits, sorted, and their tags."""
        for bucket in range(1 << self.bits if self.bounds else 0):
            parts = [slice(bounds[bucket], bounds[bucket + 1]) for bounds in self.bounds]
            values, tags = (np.concatenate([column[part] for part in parts]) for column in (self.values, self.tags))
            # Each number holds a hash's first bits and its place: sorting such numbers is several times as fast as sorting places.
            width = np.uint64(max(len(values) - 1, 1).bit_length())
            numbers = ((values >> width) << width) | np.arange(len(values), dtype=np.uint64)
            numbers.sort()
            order = (numbers & ((np.uint64(1) << width) - np.uint64(1))).view(np.int64)
            yield values[order], tags[order]


def _close(
    values: UInt64[ndarray, " n"], tags: Int[ndarray, " n"], mirrored: int, guards: int
) -> tuple[Int[ndarray, " m"], Int[ndarray, " m"]]:
    """The close pairs among sorted hashes, each with those that follow it, packed into one number each, and their hits.

    mirrored: the kind that is. Of a run of one clip's hashes only both ends are compared: a still clip would hide its neighbours from each
    other.
    """
    owner = tags >> _KIND
    ends = np.ones(len(tags), bool)
    ends[1:-1] = (owner[1:-1] != owner[:-2]) | (owner[1:-1] != owner[2:])
    if not ends.all():
        values, tags = values[ends], tags[ends]
    pairs, hits = [], []
    for step in range(1, WINDOW + 1):
        bits = np.bitwise_count(values[:-step] ^ values[step:])
        close = np.flatnonzero(bits <= BITS)
        found = _packed(tags[close], tags[close + step], mirrored, guards)
        wanted = found >= 0
        pairs.append(found[wanted])
        hits.append(np.where(bits[close][wanted] <= CLEAR, HITS, 1))
    return _counted(np.concatenate(pairs), np.concatenate(hits))


def _packed(one: Int[ndarray, " n"], other: Int[ndarray, " n"], mirrored: int, guards: int) -> Int[ndarray, " n"]:
    """Pairs of clips, packed, from the tags of close hashes; -1 where two hashes suggest nothing."""
    one, other = np.minimum(one, other), np.maximum(one, other)
    low, high = one >> _KIND, other >> _KIND
    first, second = one & ((1 << _KIND) - 1), other & ((1 << _KIND) - 1)
    # Two mirrored hashes say what the two others say; so do a mirrored and a whole one in either order.
    new = (first != mirrored) | ((second != mirrored) & (second != 0))
    whole = (first % mirrored == 0) | (second % mirrored == 0)
    turned = (first == mirrored) != (second == mirrored)
    return np.where((low != high) & (low < guards) & new & whole, low * _WIDTH + 2 * high + turned, -1)


def _counted(pairs: Int[ndarray, " n"], hits: Int[ndarray, " n"]) -> tuple[Int[ndarray, " m"], Int[ndarray, " m"]]:
    """Each pair once, sorted, with the sum of its hits."""
    unique, places = np.unique(pairs, return_inverse=True)
    return unique, np.bincount(places, hits, minlength=len(unique)).astype(np.int64)


_WIDTH = 1 << 32  # one pair in one number: the first clip, the second, whether mirrored
