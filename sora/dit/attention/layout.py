"""Where each token of a pack stands in its own clip, who sees whom there, and the signatures that attention and its patterns share.

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

EVERYWHERE = -1  # the reach of a mask along an axis that it does not limit


@dataclass(frozen=True, eq=False)
class Layout:
    """The places of a pack's tokens, made once per forward pass without asking the device for anything.

    segments: of the pack. grids: frames, rows and columns of each segment, on the host (see `Segments`): (0, 0, 0) for an empty one, and a
    single row for the padding. coordinates: frame, row and column of each token in its own clip, counted from 0, on the device. Of an axis
    that is cut over ranks, segments and coordinates are of the part, grids of the whole, and `uncut` is the layout of the whole.
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
    """Which tokens of its own clip a token sees in self-attention: those at most `reach` frames, rows and columns away.

    reach: for each axis, -1 for no limit. causal: only its own frame and earlier ones.
    """

    layout: Layout
    reach: tuple[int, int, int]
    causal: bool

    def __post_init__(self) -> None:
        refuse_reach(self.reach)


def refuse_reach(reach: tuple[int, int, int]) -> None:
    """Raise ValueError for a reach that is none."""
    if min(reach) < EVERYWHERE:
        raise ValueError(f"dit.pattern reaches {reach} frames, rows and columns; a reach is at least 0, or -1 for no limit")


def sees(queries: Int[Tensor, "N 3"], keys: Int[Tensor, "M 3"], *, reach: tuple[int, int, int], causal: bool) -> Bool[Tensor, "N M"]:
    """Whether a token at one place sees one at another place of the same clip: the formula that every backend is tested against."""
    seen = torch.ones(len(queries), len(keys), dtype=torch.bool, device=queries.device)
    for axis, far in enumerate(reach):
        if far != EVERYWHERE:
            seen &= (queries[:, None, axis] - keys[None, :, axis]).abs() <= far
    if causal:
        seen &= keys[None, :, 0] <= queries[:, None, 0]
    return seen


class Attention(Protocol):
    """Queries meet the keys and values of their own segment; `mask` limits that further where both lie on one axis.

    q (N, H, E), k and v (M, K, E) with K dividing H: query head h meets head h * K // H of the keys. A query that sees nothing gets 0.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor: ...


class Route:
    """The way of a network to its attention: all its blocks ask here, so that a strategy may put something in between."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        return self.attention(q, k, v, q_segments, k_segments, mask)


SelfAttend = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]
Pattern = Callable[[Attention, int], SelfAttend]
