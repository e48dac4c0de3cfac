"""What the rooms hand to one another: grids, packed tokens, noise levels, packed text, and the batch of them.

Everything lies on one flat axis: clips of any size and length stand end to end, and `Segments` says where each ends.
A pack has a fixed number of segments and of tokens (its budgets), so that every tensor of a run has one shape:

    [ clip 0 | clip 1 | ... | clip g-1 | (empty segments) | padding ]

The real clips come first, then segments of length 0 up to the clip budget, then one segment that holds whatever tokens
are left of the token budget. Padding reaches no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Grid(NamedTuple):
    """How many patches a clip spans in time, height and width."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        return self.t * self.h * self.w


class Movable:
    """A frozen dataclass of tensors that moves between devices as one."""

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
    """Where each clip of a packed axis begins and ends, twice: for the host, which must not ask the device, and for the device.

    host: int64, on the CPU wherever the rest goes. A tensor rather than Python numbers, because a compiled network would be compiled anew
    for other numbers; what runs on the device only hands it on, and the attention behind its op reads it. cu_seqlens: the same numbers.
    """

    host: Int[Tensor, "G1"]  # G + 1 of them, starts at 0
    cu_seqlens: Int[Tensor, "G1"]  # int32

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

    # An axis may be cut over ranks (`sora.parallel.context.Part`). Here is what is computed along a whole one.

    @property
    def whole(self) -> Segments:
        """Of the whole axis."""
        return self

    def part(self, whole: Segments) -> Segments:
        """Of as much of another whole axis as of this one."""
        return whole

    def mine(self, x: Tensor) -> Tensor:
        """The rows for these tokens, of rows for all of the axis."""
        return x

    def everyones(self, x: Tensor) -> Tensor:
        """Rows for all of the axis, of rows for these tokens."""
        return x

    def added(self, sums: Tensor) -> Tensor:
        """Sums over all of the axis, of sums over these tokens."""
        return sums

    def beside(self, other: Segments) -> Segments:
        """Of the axis on which segment g of another axis stands behind segment g of this one."""
        return Segments(host=self.host + other.host, cu_seqlens=self.cu_seqlens + other.cu_seqlens)


def owners(segments: Segments) -> Int[Tensor, "N"]:
    """The segment of each token; computed on the device, with no shape that depends on the clips."""
    places = torch.arange(segments.total, device=segments.cu_seqlens.device, dtype=torch.int32)
    return torch.searchsorted(segments.cu_seqlens, places, right=True) - 1


def highest(levels: NoiseLevels, segments: Segments) -> Float[Tensor, "G"]:
    """The highest noise level in each segment: words are in the state of what is being denoised, whatever stands still beside it."""
    return levels.levels.new_zeros(segments.count).scatter_reduce(0, levels.owners, levels.levels, "amax")


def means(states: Float[Tensor, "M D"], segments: Segments) -> Float[Tensor, "G D"]:
    """The mean of each segment's states; 0 for a segment without any."""
    # In float32 at least: a sum of hundreds of bf16 states stops growing.
    whole = states.to(torch.promote_types(states.dtype, torch.float32))
    sums = segments.added(whole.new_zeros(segments.count, whole.shape[1]).index_add(0, owners(segments), whole))
    return (sums / segments.whole.cu_seqlens.diff().clamp_min(1)[:, None]).to(states.dtype)


class Joined(NamedTuple):
    """Two packed axes as one, on which segment g of the first stands before segment g of the second.

    places: (N + M,), where each token of the first axis and then of the second stands on the joint one. order: its inverse.
    """

    segments: Segments
    places: Int[Tensor, "K"]
    order: Int[Tensor, "K"]


def join(first: Segments, second: Segments) -> Joined:
    """One axis of two that have as many segments; computed on the device, with no shape that depends on the clips."""
    starts, ends = second.cu_seqlens[:-1], first.cu_seqlens[1:]  # how much of the other axis stands before a token
    before = torch.cat((starts[owners(first)], ends[owners(second)])).to(torch.int64)
    here = torch.arange(first.total + second.total, device=before.device)
    places = before + torch.cat((here[: first.total], here[: second.total]))
    order = torch.empty_like(places).scatter_(0, places, here)
    return Joined(first.beside(second), places, order)


@dataclass(frozen=True)
class PackedTokens(Movable):
    """The spacetime patches of a pack of clips on one flat axis.

    patches: (N, P). positions: (N, 3) float32, time in seconds and then rows and columns in patches. segments: the clip budget
    plus the padding segment. grids: one for each real clip, in packed order.
    """

    patches: Float[Tensor, "N P"]
    positions: Float[Tensor, "N 3"]
    segments: Segments
    grids: tuple[Grid, ...]

    def with_patches(self, patches: Float[Tensor, "N P"]) -> PackedTokens:
        return replace(self, patches=patches)

    @property
    def real(self) -> int:
        """How many tokens belong to clips; the rest is padding and stands at the end."""
        return sum(grid.tokens for grid in self.grids)


@dataclass(frozen=True)
class NoiseLevels(Movable):
    """One noise level per (clip, latent frame), spread over that frame's tokens by index.

    levels: (U,) in [0, 1], 0 is data and 1 is noise. index: (N,) int64, which level each token has. owners: (U,) int64, the segment whose
    tokens have that level, so that what modulates a clip can depend on the clip too; tokens of two segments never share a level.
    """

    levels: Float[Tensor, "U"]
    index: Int[Tensor, "N"]
    owners: Int[Tensor, "U"]

    def spread(self) -> Float[Tensor, "N"]:
        return self.levels[self.index]


@dataclass(frozen=True)
class TextTokens(Movable):
    """Caption token states, one segment per segment of the video tokens they belong to (fillers belong to the padding).

    pooled: (G, W), one vector for each whole caption, from an encoder that makes one; None from the others.
    """

    states: Float[Tensor, "M D"]
    segments: Segments
    pooled: Float[Tensor, "G W"] | None = None


@dataclass(frozen=True)
class Batch(Movable):
    """One pack: clean patches, their captions, which tokens are conditions, and the ids from which every draw follows.

    conditions: (N,) bool, True for tokens that stay at noise level 0 and reach no loss. sample_ids, epochs: one per real clip.
    """

    tokens: PackedTokens
    text: TextTokens
    conditions: Bool[Tensor, "N"]
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]
