"""Data types that the packages share: grids, packed tokens, noise levels, packed captions, and a batch of all of them.

Clips of any size and length are concatenated along one flat token axis, and `Segments` holds the boundaries between them.
A pack has a fixed number of segments and of tokens (its budgets), so that every tensor of a run has one shape:

    [ clip 0 | clip 1 | ... | clip g-1 | (empty segments) | padding ]

The real clips come first, then segments of length 0 up to the clip budget, then one padding segment that fills the token budget.
Padding tokens do not contribute to the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Grid(NamedTuple):
    """Number of patches of a clip in time, height and width."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w


class Movable:
    """Base class of frozen dataclasses of tensors whose `to` and `pin_memory` apply to every tensor in them."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return self._each(lambda item: item.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._each(lambda item: item.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> Self:
        names = [field.name for field in fields(self)]  # pyright: ignore[reportArgumentType]
        changed = {name: change(getattr(self, name)) for name in names if isinstance(getattr(self, name), Tensor | Movable)}
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Segments(Movable):
    """Cumulative lengths of the G segments of a packed axis, stored once on the CPU and once on the device.

    host: (G + 1,) int64, always on the CPU, so that reading the lengths never waits for the device. It is a tensor and not a tuple of
    numbers, because torch.compile would recompile for new numbers; compiled code passes it on unread to the attention ops.
    cu_seqlens: the same numbers as int32, on the device of the tokens.
    """

    host: Int[Tensor, "G1"]  # starts at 0
    cu_seqlens: Int[Tensor, "G1"]

    @classmethod
    def of(cls, lengths: tuple[int, ...] | list[int]) -> Segments:
        ends = torch.tensor((0, *lengths), dtype=torch.int64).cumsum(0)
        return cls(host=ends, cu_seqlens=ends.to(torch.int32))

    def _each(self, change: Callable[[Any], Any]) -> Self:
        return replace(self, cu_seqlens=change(self.cu_seqlens))

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.host.diff().tolist())

    @property
    def count(self) -> int:
        return self.host.shape[0] - 1

    @property
    def total(self) -> int:
        return int(self.host[-1])

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    # `sora.parallel.context.AxisShard` overrides these for context parallelism, where each rank holds one part of the axis.

    @property
    def whole(self) -> Segments:
        """Segments of the whole axis, over all ranks."""
        return self

    def part(self, whole: Segments) -> Segments:
        """This rank's part of another axis, `whole`, which is split over ranks as this axis is."""
        return whole

    def mine(self, x: Tensor) -> Tensor:
        """Select this rank's rows from a tensor with one row per token of the whole axis."""
        return x

    def everyones(self, x: Tensor) -> Tensor:
        """Gather the rows of all ranks: one row per token of the whole axis, from one row per token of this rank."""
        return x

    def added(self, sums: Tensor) -> Tensor:
        """Add up the ranks' partial sums: sums over the whole axis, from sums over this rank's tokens."""
        return sums

    def beside(self, other: Segments) -> Segments:
        """Segments of the joint axis in which segment g of this axis is followed by segment g of `other`."""
        return Segments(host=self.host + other.host, cu_seqlens=self.cu_seqlens + other.cu_seqlens)


def owners(segments: Segments) -> Int[Tensor, "N"]:
    """Index of the segment that each of the N tokens belongs to, computed on the device with shapes that do not depend on the clips."""
    places = torch.arange(segments.total, device=segments.cu_seqlens.device, dtype=torch.int32)
    return torch.searchsorted(segments.cu_seqlens, places, right=True) - 1


def highest(levels: NoiseLevels, segments: Segments) -> Float[Tensor, "G"]:
    """Highest noise level in each segment. Words get this level: conditions at level 0 must not make them look clean."""
    return levels.levels.new_zeros(segments.count).scatter_reduce(0, levels.owners, levels.levels, "amax")


def means(states: Float[Tensor, "M D"], segments: Segments) -> Float[Tensor, "G D"]:
    """Mean of the states of each segment; 0 for an empty segment."""
    # Accumulate in float32 or wider: a bf16 sum of hundreds of states stops growing.
    whole = states.to(torch.promote_types(states.dtype, torch.float32))
    sums = segments.added(whole.new_zeros(segments.count, whole.shape[1]).index_add(0, owners(segments), whole))
    return (sums / segments.whole.cu_seqlens.diff().clamp_min(1)[:, None]).to(states.dtype)


class Joined(NamedTuple):
    """Joint axis of two packed axes, in which segment g of the first is followed by segment g of the second.

    places: (N + M,), position on the joint axis of each token of the first axis, then of each token of the second.
    order: (N + M,), the inverse permutation of `places`.
    """

    segments: Segments
    places: Int[Tensor, "K"]
    order: Int[Tensor, "K"]


def join(first: Segments, second: Segments) -> Joined:
    """Join two axes with the same number of segments, on the device and with shapes that do not depend on the clips."""
    starts, ends = second.cu_seqlens[:-1], first.cu_seqlens[1:]  # number of tokens of the other axis before each segment's tokens
    before = torch.cat((starts[owners(first)], ends[owners(second)])).to(torch.int64)
    here = torch.arange(first.total + second.total, device=before.device)
    places = before + torch.cat((here[: first.total], here[: second.total]))
    order = torch.empty_like(places).scatter_(0, places, here)
    return Joined(first.beside(second), places, order)


@dataclass(frozen=True)
class PackedTokens(Movable):
    """Spacetime patches of a pack of clips, concatenated along one flat axis of N tokens.

    patches: (N, P), with P numbers per patch. positions: (N, 3) float32: time in seconds, row and column in patches.
    segments: as many as the clip budget, plus one for the padding. grids: one for each real clip, in packed order.
    """

    patches: Float[Tensor, "N P"]
    positions: Float[Tensor, "N 3"]
    segments: Segments
    grids: tuple[Grid, ...]

    def with_patches(self, patches: Float[Tensor, "N P"]) -> PackedTokens:
        return replace(self, patches=patches)

    @property
    def real(self) -> int:
        """Number of tokens that belong to clips. They come first; the remaining tokens are padding."""
        return sum(grid.tokens for grid in self.grids)


@dataclass(frozen=True)
class NoiseLevels(Movable):
    """Noise levels of a pack: one per (clip, latent frame), and for each token the index of its level.

    levels: (U,) in [0, 1], where 0 is data and 1 is noise. index: (N,) int64, index into `levels` for each token.
    owners: (U,) int64, the segment whose tokens have that level, so that modulation can depend on the clip as well. Tokens of different
    segments never share an entry of `levels`.
    """

    levels: Float[Tensor, "U"]
    index: Int[Tensor, "N"]
    owners: Int[Tensor, "U"]

    def spread(self) -> Float[Tensor, "N"]:
        return self.levels[self.index]


@dataclass(frozen=True)
class TextTokens(Movable):
    """Packed token states of the captions of a pack: segment g holds the caption of segment g of the video tokens.

    states: (M, D). The last segment holds the padding, as it does for video tokens.
    pooled: (G, W), one vector per caption, if the text encoder gives one; else None.
    """

    states: Float[Tensor, "M D"]
    segments: Segments
    pooled: Float[Tensor, "G W"] | None = None


@dataclass(frozen=True)
class Batch(Movable):
    """One pack: clean patches, captions, a mask of condition tokens, and the ids that seed all random draws.

    conditions: (N,) bool, True for tokens that stay at noise level 0 and do not contribute to the loss.
    sample_ids, epochs: one per real clip.
    """

    tokens: PackedTokens
    text: TextTokens
    conditions: Bool[Tensor, "N"]
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]
