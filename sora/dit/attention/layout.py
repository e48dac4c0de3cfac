"""Coordinates of tokens in their clips, attention masks, and the signatures of attention backends and attention patterns.

attention(q, k, v, q_segments, k_segments, mask=None) -> o        q, o (N, H, E); k, v (M, K, E), K divides H
pattern(attention, block_number) -> (q, k, v, layout) -> o        self-attention of one block
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sora.tokens import PackedTokens, Segments

EVERYWHERE = -1  # reach of a mask along an axis without limit


@dataclass(frozen=True, eq=False)
class Layout:
    """Coordinates of a pack's tokens, computed once per forward pass without synchronising with the device.

    segments: segments of the pack. grids: (G, 3) on the CPU, frames, rows and columns of each segment; (0, 0, 0) for an empty segment and
    (1, 1, n) for n tokens of padding. coordinates: (N, 3) on the device, frame, row and column of each token in its clip, from 0.
    uncut: under context parallelism, the layout of the whole axis. Then segments and coordinates are those of this rank's part, and grids
    those of the whole axis.
    """

    segments: Segments
    grids: Int[Tensor, "G 3"]
    coordinates: Int[Tensor, "N 3"]
    uncut: Layout | None = None

    @classmethod
    def of(cls, tokens: PackedTokens) -> Layout:
        segments = tokens.segments.whole
        empty = segments.count - 1 - len(tokens.grids)
        grids = torch.tensor([*tokens.grids, *[(0, 0, 0)] * empty, (1, 1, segments.total - tokens.real)], dtype=torch.int64)
        whole = cls(segments, grids, _coordinates(segments, grids, segments.total))
        return whole if segments is tokens.segments else cls(tokens.segments, grids, tokens.segments.mine(whole.coordinates), whole)


def _coordinates(segments: Segments, grids: Int[Tensor, "G 3"], count: int) -> Int[Tensor, "N 3"]:
    device = segments.cu_seqlens.device
    places = torch.arange(count, device=device, dtype=torch.int32)
    owners = torch.searchsorted(segments.cu_seqlens, places, right=True) - 1
    areas_widths = torch.stack((grids[:, 1] * grids[:, 2], grids[:, 2]), dim=1).clamp_min(1).to(torch.int32)
    area, width = areas_widths.to(device, non_blocking=True)[owners].unbind(1)
    inside = places - segments.cu_seqlens[owners]
    return torch.stack((inside // area, inside % area // width, inside % width), dim=1)


@dataclass(frozen=True)
class Mask:
    """Mask of self-attention within a clip: a token sees the tokens that are at most `reach` frames, rows and columns away.

    reach: distance along each axis, -1 for no limit. causal: a token sees its own frame and earlier frames only.
    """

    layout: Layout
    reach: tuple[int, int, int]
    causal: bool

    def __post_init__(self) -> None:
        refuse_reach(self.reach)


def refuse_reach(reach: tuple[int, int, int]) -> None:
    """Raise ValueError if a reach is below -1."""
    if min(reach) < EVERYWHERE:
        raise ValueError(f"dit.pattern reaches {reach} frames, rows and columns; a reach is at least 0, or -1 for no limit")


def sees(queries: Int[Tensor, "N 3"], keys: Int[Tensor, "M 3"], *, reach: tuple[int, int, int], causal: bool) -> Bool[Tensor, "N M"]:
    """Whether each query sees each key of the same clip, given their coordinates: the reference that all backends are tested against."""
    seen = torch.ones(len(queries), len(keys), dtype=torch.bool, device=queries.device)
    for axis, far in enumerate(reach):
        if far != EVERYWHERE:
            seen &= (queries[:, None, axis] - keys[None, :, axis]).abs() <= far
    if causal:
        seen &= keys[None, :, 0] <= queries[:, None, 0]
    return seen


class Attention(Protocol):
    """Attention of the queries of each segment to the keys and values of the same segment.

    q: (N, H, E). k, v: (M, K, E), where K divides H; query head h uses key head h * K // H. mask: further limits which keys a query sees,
    for self-attention. The output is (N, H, E), 0 for a query that sees no key.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor: ...


class Route:
    """Calls `attention`, through which all blocks of a network compute theirs, so that parallel strategies can replace or wrap it."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        return self.attention(q, k, v, q_segments, k_segments, mask)


SelfAttend = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]
Pattern = Callable[[Attention, int], SelfAttend]
