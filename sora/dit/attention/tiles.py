"""Decomposition of masked attention into tiles: groups of queries with the keys they may see, as strided views of the packed axis.

Full attention of a clip is one tile, attention within frames one batched tile, and attention over time a tile with a stride. For causal
attention the keys are a slice of frames. For a window they are a slice of frames and rows, with a mask inside the tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from sora.dit.attention.layout import EVERYWHERE, sees
from sora.dit.attention.op import Places

Numbers = tuple[int, ...]

ROWS_OF_A_TILE = 64  # tokens per frame in a tile: fewer make matrix products inefficient, more compute keys outside the window


class View(NamedTuple):
    """Strided view of the tokens start + b * step + o * stride + i, for b < batch, o < outer, i < inner."""

    start: int
    batch: int
    step: int
    outer: int
    stride: int
    inner: int

    def of(self, packed: Tensor) -> Tensor:
        """View of a packed tensor (N, H, ...) as (batch, H, outer, inner, ...)."""
        (tokens, heads, *rest), start = packed.stride(), packed.storage_offset() + self.start * packed.stride(0)
        size = (self.batch, packed.shape[1], self.outer, self.inner, *packed.shape[2:])
        # One as_strided and not slices and transposes, for speed: a training step makes thousands of these views.
        return packed.as_strided(size, (self.step * tokens, heads, self.stride * tokens, tokens, *rest), start)

    def read(self, packed: Tensor) -> Tensor:
        return self.of(packed).flatten(2, 3)

    def put(self, packed: Tensor, part: Tensor) -> None:
        self.of(packed).copy_(part.unflatten(2, (self.outer, self.inner)))

    def add(self, packed: Tensor, part: Tensor) -> None:
        self.of(packed).add_(part.unflatten(2, (self.outer, self.inner)))


class Corner(NamedTuple):
    """Box of a clip's tokens: ranges of frames, rows and columns, each as (first, count)."""

    frames: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


class Tile(NamedTuple):
    """Queries and the keys they may see. places: boxes of both in their clip, if not every query sees every key; else None."""

    queries: View
    keys: View
    places: tuple[Corner, Corner] | None

    def mask(self, places: Places) -> Bool[Tensor, "L S"] | None:
        return None if self.places is None else _mask(*self.places, tuple(places.reach), places.causal)


def tiles(places: Places) -> tuple[Tile, ...]:
    """Tiles of a pack. Every query that sees a key is in exactly one tile."""
    q_lengths, k_lengths = (tuple(host.diff().tolist()) for host in (places.q_host, places.k_host))
    grids = None if places.grids is None else tuple(map(tuple, places.grids.tolist()))
    return _tiles(q_lengths, k_lengths, grids, tuple(places.reach), places.causal)


@lru_cache(maxsize=256)
def _tiles(q_lengths: Numbers, k_lengths: Numbers, grids: tuple[Numbers, ...] | None, reach: Numbers, causal: bool) -> tuple[Tile, ...]:
    if grids is None:
        return tuple(_runs(q_lengths, k_lengths))
    found: list[Tile] = []
    start = 0
    for length, grid in zip(q_lengths, grids, strict=True):
        if length:
            found += _over_time(start, grid, reach, causal) if reach[1:] == (0, 0) else _over_frames(start, grid, reach, causal)
        start += length
    return tuple(found)


def _runs(q_lengths: Numbers, k_lengths: Numbers) -> list[Tile]:
    """Tiles of whole segments; adjacent segments of equal lengths are batched in one tile."""
    runs: list[Tile] = []
    start_q = start_k = 0
    previous = (0, 0)
    for length_q, length_k in zip(q_lengths, k_lengths, strict=True):
        if length_q and length_k:
            first_q, first_k, batch = start_q, start_k, 1
            if previous == (length_q, length_k):
                before = runs.pop()
                first_q, first_k, batch = before.queries.start, before.keys.start, before.queries.batch + 1
            runs.append(Tile(View(first_q, batch, length_q, 1, 0, length_q), View(first_k, batch, length_k, 1, 0, length_k), places=None))
        start_q, start_k, previous = start_q + length_q, start_k + length_k, (length_q, length_k)
    return runs


def _over_time(start: int, grid: Numbers, reach: Numbers, causal: bool) -> list[Tile]:
    """One tile for attention over time: the frames at each row and column, batched over rows and columns."""
    frames, area = grid[0], grid[1] * grid[2]
    view = View(start, area, 1, frames, area, 1)
    corner = Corner((0, frames), (0, 1), (0, 1))
    return [Tile(view, view, (corner, corner) if causal or reach[0] != EVERYWHERE else None)]


def _over_frames(start: int, grid: Numbers, reach: Numbers, causal: bool) -> Iterator[Tile]:
    """Tiles for groups of frames that see the same frames, split by rows if the mask limits rows."""
    frames, rows, width = grid
    limits_place = reach[1] != EVERYWHERE or reach[2] != EVERYWHERE
    step = max(1, ROWS_OF_A_TILE // width) if reach[1] != EVERYWHERE else rows
    for batch, (first, count), (first_seen, count_seen) in _frame_groups(frames, reach[0], causal):
        for row in range(0, rows, step):
            mine, seen = (row, min(step, rows - row)), _around(row, min(step, rows - row), reach[1], rows)
            ours = Corner((first, count), mine, (0, width)), Corner((first_seen, count_seen), seen, (0, width))
            queries, keys = (_view(start, grid, corner, batch) for corner in ours)
            yield Tile(queries, keys, ours if limits_place else None)


def _frame_groups(frames: int, reach: int, causal: bool) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Yield (batch, query frames, key frames), the frames as (first, count); batch counts consecutive frames that are alike."""
    if reach == 0:
        yield frames, (0, 1), (0, 1)
    elif reach == EVERYWHERE and not causal:
        yield 1, (0, frames), (0, frames)
    else:
        for frame in range(frames):
            first, count = _around(frame, 1, reach, frames)
            yield 1, (frame, 1), (first, frame + 1 - first if causal else count)


def _around(first: int, count: int, reach: int, size: int) -> tuple[int, int]:
    """Range (first, count) of the indices in 0..size - 1 that are at most `reach` away from the range (first, count)."""
    if reach == EVERYWHERE:
        return 0, size
    low, high = max(0, first - reach), min(size, first + count + reach)
    return low, high - low


def _view(start: int, grid: Numbers, corner: Corner, batch: int) -> View:
    area, width = grid[1] * grid[2], grid[2]
    (frame, frames), (row, rows), _ = corner
    first = start + frame * area + row * width
    if rows == grid[1]:
        return View(first, batch, area, 1, 0, frames * area)
    return View(first, batch, area, frames, area, rows * width)


@lru_cache(maxsize=512)
def _mask(queries: Corner, keys: Corner, reach: tuple[int, int, int], causal: bool) -> Bool[Tensor, "L S"] | None:
    """Boolean mask of a tile, True where a query sees a key; None if all see all."""
    seen = sees(_points(queries), _points(keys), reach=reach, causal=causal)
    return None if seen.all() else seen


def _points(corner: Corner) -> Tensor:
    axes = [torch.arange(first, first + count) for first, count in corner]
    return torch.cartesian_prod(*axes).reshape(-1, 3)
