"""Ways to turn the clips of a window into packs: packed into a token budget, batched by exact shape, or padded to the longest.

A filling takes the window's grids in their order, groups clips into packs, and may leave some for the next window; it also computes what a
device pays for a pack. All three give packs of at most `budget` tokens and `max_clips` clips.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from sora.data.plan.cost import Cost


class Filled(NamedTuple):
    """Packs of a window's clips. order: clip indices; pack p is order[ends[p - 1]:ends[p]]. left: indices for the next window."""

    order: Int[np.ndarray, "n"]
    ends: Int[np.ndarray, "packs"]
    left: Int[np.ndarray, "m"]


@runtime_checkable
class Filling(Protocol):
    """A way to fill packs. balanced: packs of equal cost form one step. waits: clips may wait for the next window.

    exact: the clips of a pack have one shape.
    """

    balanced: bool
    waits: bool
    exact: bool

    def fill(self, grids: Int[np.ndarray, "n 3"], *, budget: int, max_clips: int, closing: bool) -> Filled:
        """Group the clips of a window into packs. closing: no clip may wait, since the epoch ends here."""
        ...

    def paid(self, tokens: Int[np.ndarray, "n"], ends: Int[np.ndarray, "packs"], *, cost: Cost, budget: int) -> Float[np.ndarray, "packs"]:
        """The cost of each pack, padding included; tokens are in packed order."""
        ...


class Packed:
    """Clips of any shapes end to end, each in the fullest pack that has room; the pack is padded to the budget.

    Clips over half of the budget are placed first, as no two of them share a pack; the shortest ones, which hold 1/32 of all tokens, are
    placed last and fill the gaps. All others keep the window's random order, so that a pack mixes sizes. Sorted from the largest down (best
    fit decreasing, Johnson 1973), each pack would hold clips of one size, and be less full where most clips are of similar size.
    """

    balanced, waits, exact = True, False, False

    def fill(self, grids: Int[np.ndarray, "n 3"], *, budget: int, max_clips: int, closing: bool) -> Filled:
        tokens = grids.prod(axis=1)
        part = np.where(tokens * 2 > budget, 0, 1)
        rising = np.argsort(tokens, kind="stable")
        part[rising[np.cumsum(tokens[rising]) * 32 <= tokens.sum()]] = 2
        order = np.lexsort((np.where(part == 1, 0, -tokens), part))
        owners, counts = best_fit(tokens[order], budget=budget, max_clips=max_clips)
        owner = np.repeat(np.array(owners, dtype=np.int64), counts)
        ends = np.cumsum(np.bincount(owner)) if len(owner) else np.zeros(0, dtype=np.int64)
        return Filled(order[np.argsort(owner, kind="stable")], ends, np.zeros(0, dtype=np.int64))

    def paid(self, tokens: Int[np.ndarray, "n"], ends: Int[np.ndarray, "packs"], *, cost: Cost, budget: int) -> Float[np.ndarray, "packs"]:
        padding = budget - summed(tokens, ends)
        return summed(cost.of(tokens), ends) + cost.linear * padding


def best_fit(sizes: Int[np.ndarray, "n"], *, budget: int, max_clips: int) -> tuple[list[int], list[int]]:
    """Pack `sizes` in their order, at most `budget` per pack, and return runs (pack, how many of the next sizes go into it)."""
    owners: list[int] = []
    counts: list[int] = []
    if not len(sizes):
        return owners, counts
    bounds = np.flatnonzero(np.diff(sizes, prepend=-1, append=-1))
    runs = zip(sizes[bounds[:-1]].tolist(), np.diff(bounds).tolist(), strict=True)
    smallest = int(sizes.min())
    room: list[int] = []  # (tokens left, pack) of each open pack as one number, ascending
    slots: list[int] = []
    for size, count in runs:
        while count:
            place = bisect_left(room, size << 32)
            if place < len(room):
                left, pack = divmod(room.pop(place), 1 << 32)
            else:
                left, pack = budget, len(slots)
                slots.append(max_clips)
            taken = min(count, left // size, slots[pack])
            owners.append(pack)
            counts.append(taken)
            count -= taken
            slots[pack] -= taken
            left -= taken * size
            if left >= smallest and slots[pack]:
                insort(room, left << 32 | pack)
    return owners, counts


class Bucketed:
    """Clips of exactly one shape together, as many as the budget holds; incomplete batches wait for the next window.

    This suits dense attention over (clips, tokens): nothing is padded and all batches of a shape are alike.
    """

    balanced, waits, exact = True, True, True

    def fill(self, grids: Int[np.ndarray, "n 3"], *, budget: int, max_clips: int, closing: bool) -> Filled:
        if not len(grids):
            return Filled(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
        shapes, owner, counts = np.unique(grids, axis=0, return_inverse=True, return_counts=True)
        each = np.minimum(budget // shapes.prod(axis=1), max_clips)
        order = np.argsort(owner.ravel(), kind="stable")
        owner = owner.ravel()[order]
        place = np.arange(len(order)) - (np.cumsum(counts) - counts)[owner]
        whole = counts // each * each
        kept: Bool[np.ndarray, "n"] = np.ones(len(order), dtype=np.bool_) if closing else place < whole[owner]
        batches = np.cumsum(np.ceil(counts / each).astype(np.int64)) - np.ceil(counts / each).astype(np.int64)
        batch = (batches[owner] + place // each[owner])[kept]
        _, sizes = np.unique(batch, return_counts=True)
        return Filled(order[kept], np.cumsum(sizes), order[~kept])

    def paid(self, tokens: Int[np.ndarray, "n"], ends: Int[np.ndarray, "packs"], *, cost: Cost, budget: int) -> Float[np.ndarray, "packs"]:
        return summed(cost.of(tokens), ends)


class Padded:
    """Clips in the order of their draws, each padded to the longest of its batch: the baseline, without sorting or balancing."""

    balanced, waits, exact = False, False, False

    def fill(self, grids: Int[np.ndarray, "n 3"], *, budget: int, max_clips: int, closing: bool) -> Filled:
        ends: list[int] = []
        longest = first = 0
        for place, size in enumerate(grids.prod(axis=1).tolist()):
            if place > first and (place - first == max_clips or max(longest, size) * (place - first + 1) > budget):
                ends.append(place)
                first, longest = place, 0
            longest = max(longest, size)
        if len(grids):
            ends.append(len(grids))
        return Filled(np.arange(len(grids)), np.array(ends, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def paid(self, tokens: Int[np.ndarray, "n"], ends: Int[np.ndarray, "packs"], *, cost: Cost, budget: int) -> Float[np.ndarray, "packs"]:
        starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
        return cost.of(np.maximum.reduceat(tokens, starts)) * (ends - starts) if len(ends) else np.zeros(0)


def summed(values: Int[np.ndarray, "n"] | Float[np.ndarray, "n"], ends: Int[np.ndarray, "packs"]) -> np.ndarray:
    """The sum of values over each pack."""
    starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
    return np.add.reduceat(values, starts) if len(ends) else np.zeros(0, dtype=np.asarray(values).dtype)
