"""Floating-point operations (FLOPs) of a network, counted from the matrix products of one forward pass on the meta device.

A multiplication and an addition are two FLOPs. Attention counts 4 E for each visible pair of a query and a key in each head of width E;
other clips and padding are not counted. Elementwise operations and norms are not counted, nor is recomputation in the backward pass:
these are model FLOPs as in Chowdhery et al. 2022 (PaLM, appendix B), where a training step takes three times the FLOPs of its forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sora.dit.attention.layout import Attention, Mask
from sora.system.torch_private import TorchDispatchMode
from sora.tokens import Grid, NoiseLevels, PackedTokens, Segments, TextTokens

TRAINING = 3  # the backward pass computes two products for each one of the forward pass
_BASE = 16  # the probe has 1 token, 16 words, 16^2 levels and 16^3 segments
_LEFT_FACTOR = {torch.ops.aten.mm: 0, torch.ops.aten.addmm: 1, torch.ops.aten.bmm: 0, torch.ops.aten.baddbmm: 1}


class ProductRows(NamedTuple):
    """Number of rows of a matrix product per token, word, noise level and clip of a pack."""

    tokens: int
    words: int
    levels: int
    clips: int

    @classmethod
    def decoded(cls, rows: int) -> ProductRows:
        """Decode the number of rows of a product in the probe, which has 1 token, 16 words, 256 levels and 4,096 segments.

        The counts are the digits of `rows` in base 16. Only `clips` may exceed 15, because a network may pad captions to one length.
        """
        tokens, words, levels = (rows // _BASE**place % _BASE for place in range(3))
        return cls(tokens, words, levels, rows // _BASE**3)

    def of(self, tokens: int, words: int, levels: int, clips: int) -> int:
        return self.tokens * tokens + self.words * words + self.levels * levels + self.clips * clips


class AttentionPairs(NamedTuple):
    """Rows of queries and keys of one attention op, and the reach of its mask (see `sora.dit.attention.layout.Mask`); None: no mask."""

    queries: ProductRows
    keys: ProductRows
    reach: tuple[int, int, int] | None
    causal: bool

    def pairs(self, grid: Grid, words: int) -> int:
        """Number of visible pairs of a query and a key in one clip with `words` words."""
        if self.reach is not None:
            time, rows, columns = (_pairs(size, far) for size, far in zip(grid, self.reach, strict=True))
            return (_earlier(grid.t, self.reach[0]) if self.causal else time) * rows * columns
        return self.queries.of(grid.tokens, words, grid.t, 1) * self.keys.of(grid.tokens, words, grid.t, 1)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass. products: FLOPs per row of matrix products. meetings: FLOPs per pair of a query and a key."""

    products: Mapping[ProductRows, int]
    meetings: Mapping[AttentionPairs, int]

    @classmethod
    def of(cls, make: Callable[[Attention], nn.Module], *, pooled_width: int | None = None) -> Flops:
        """Count the FLOPs of a network by running it once on the meta device.

        make: attention -> network. pooled_width: width of the pooled caption vector, for networks that take one.
        """
        seen = _Seen()
        with torch.device("meta"):
            network = make(seen.attention)
        with torch.no_grad(), seen:
            network(*nothing(network, (Grid(1, 1, 1),), (_BASE,), levels=_BASE**2, segments=_BASE**3, pooled_width=pooled_width))
        return cls(products=dict(seen.products), meetings=dict(seen.meetings))

    def clip(self, grid: Grid, words: int) -> int:
        """FLOPs of one clip and its caption of `words` tokens, without padding."""
        products = sum(count * rows.of(grid.tokens, words, grid.t, 1) for rows, count in self.products.items())
        return products + sum(count * meeting.pairs(grid, words) for meeting, count in self.meetings.items())

    def pack(self, grids: Sequence[Grid], words: Sequence[int]) -> int:
        """FLOPs of several clips and their captions, summed; padding is not counted."""
        return sum(self.clip(grid, number) for grid, number in zip(grids, words, strict=True))


class _Seen(TorchDispatchMode):
    """Records every matrix product; `attention` is a backend that records its calls and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[ProductRows] = Counter()
        self.meetings: Counter[AttentionPairs] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = _LEFT_FACTOR.get(func.overloadpacket)
        if place is not None:
            left, right = args[place], args[place + 1]
            rows = left.numel() // max(1, left.shape[-1])
            self.products[ProductRows.decoded(rows)] += 2 * left.shape[-1] * right.shape[-1]
        return func(*args, **(kwargs or {}))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        reach, causal = (None, False) if mask is None else (mask.reach, mask.causal)
        pairs = AttentionPairs(ProductRows.decoded(len(q)), ProductRows.decoded(len(k)), reach, causal)
        self.meetings[pairs] += 2 * q.shape[1] * (q.shape[2] + v.shape[2])
        return v.new_empty(*q.shape[:2], v.shape[2])


def nothing(
    network: nn.Module, grids: tuple[Grid, ...], words: Sequence[int], *, levels: int, segments: int, pooled_width: int | None
) -> tuple[PackedTokens, NoiseLevels, TextTokens]:
    """Inputs of a network on the meta device: a pack of clips and captions with `levels` noise levels and `segments` segments.

    network: has attributes patch_channels and text_width. words: number of tokens of each caption.
    """
    tokens, fillers = sum(grid.tokens for grid in grids), [0] * (segments - len(grids))

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    return (
        PackedTokens(
            patches=empty(tokens, int(network.patch_channels)),  # pyright: ignore[reportArgumentType]
            positions=empty(tokens, 3),
            segments=Segments.of([*(grid.tokens for grid in grids), *fillers]).to("meta"),
            grids=grids,
        ),
        NoiseLevels(levels=empty(levels), index=empty(tokens, dtype=torch.int64), owners=empty(levels, dtype=torch.int64)),
        TextTokens(
            states=empty(sum(words), int(network.text_width)),  # pyright: ignore[reportArgumentType]
            segments=Segments.of([*words, *fillers]).to("meta"),
            pooled=None if pooled_width is None else empty(segments, pooled_width),
        ),
    )


def _pairs(size: int, far: int) -> int:
    """Number of pairs of indices in 0..size - 1 that are at most `far` apart; -1 for no limit."""
    return size * size if far < 0 else sum(min(size - 1, place + far) - max(0, place - far) + 1 for place in range(size))


def _earlier(size: int, far: int) -> int:
    """Number of pairs (i, j) in 0..size - 1 with i - far <= j <= i; -1 for no limit."""
    return sum(min(place, far if far >= 0 else place) + 1 for place in range(size))
