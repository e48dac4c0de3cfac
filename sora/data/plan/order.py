"""Permutations of any size as functions instead of lists, and the turns of the sources in a mixture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from sora.system.draws import generator

DRAWN = 1 << 20  # up to this size a permutation is drawn and held; above, each position is computed
ROUND = 1024  # draws after which a mixture's shares are met exactly: shares are rounded to 1/1024
_ROUNDS = 8
Order = Callable[[Int[np.ndarray, "n"]], Int[np.ndarray, "n"]]


def permutation(stream: str, *, seed: int, epoch: int, size: int) -> Order:
    """A permutation of 0 .. size - 1 as a function of positions; it depends on the arguments alone. Large ones take no memory."""
    draw = generator(stream, seed=seed, epoch=epoch, sample=0)
    if size <= DRAWN:
        return draw.permutation(size).__getitem__
    return Feistel(size, draw.integers(1 << 63, size=_ROUNDS, dtype=np.int64).astype(np.uint64))


class Feistel:
    """A keyed bijection of 0 .. size - 1, computed per position (Luby & Rackoff 1988; cycle walking: Black & Rogaway 2002).

    It permutes the next power of two at or above `size`; a value outside 0 .. size - 1 is permuted again until it is inside. keys: one
    64-bit number for each round, an even number of them.
    """

    def __init__(self, size: int, keys: np.ndarray) -> None:
        if size < 1 or len(keys) % 2:
            raise ValueError(f"a permutation of {size} places with {len(keys)} keys cannot be made")
        self.size, self.keys = size, keys.astype(np.uint64)
        bits = max(2, (size - 1).bit_length())
        self._widths = (bits - bits // 2, bits // 2)

    def __call__(self, places: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        values = self._once(np.asarray(places, dtype=np.uint64))
        while True:
            outside = np.flatnonzero(values >= self.size)
            if not outside.size:
                return values.astype(np.int64)
            values[outside] = self._once(values[outside])

    def _once(self, values: np.ndarray) -> np.ndarray:
        high, low = self._widths
        left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & np.uint64((1 << high) - 1))
            high, low = low, high
        return left << np.uint64(low) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def turns(shares: Float[np.ndarray, "sources"], length: int) -> Int[np.ndarray, "length"]:
    """The source of each of `length` turns, such that shares (which sum to 1) are met and each source's turns are evenly spaced.

    Shares are rounded to whole turns by the largest remainder; a positive share gets at least one turn.
    """
    exact = shares * length
    counts = np.maximum(np.floor(exact), shares > 0).astype(np.int64)
    for number in np.argsort(counts - exact, kind="stable")[: max(0, length - int(counts.sum()))]:
        counts[number] += 1
    while counts.sum() > length:
        counts[counts.argmax()] -= 1
    owners = np.repeat(np.arange(len(shares)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return owners[np.argsort(places, kind="stable")]


def shares_of(weights: tuple[float, ...] | list[float] | None, sizes: list[int]) -> tuple[float, ...]:
    """Shares of datasets: the weights if there are any, else the sizes."""
    if not sizes:
        raise ValueError("no dataset is given; set data.folders to one folder or more")
    if weights is None:
        return tuple(float(size) for size in sizes)
    if len(weights) != len(sizes) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"weights {list(weights)} do not fit {len(sizes)} datasets; give one weight for each, 0 or more, not all 0")
    return tuple(float(weight) for weight in weights)
