"""Context parallelism: several ranks share one pack, each with a part of its tokens and text tokens (Ulysses; Jacobs et al. 2023).

    part of the tokens, all heads  --all-to-all-->  all tokens, part of the heads  --attention-->  and back

Attention always sees whole clips, so every attention pattern and backend works as on one rank. All else in a network works token by token,
or asks the axis for what it needs of other ranks' tokens (`sora.tokens.Segments`). The ranks of a group get the same packs and draw the
same noise; each computes the loss of its own tokens, and gradients are summed over the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from sora.diffusion.objective import Noised
from sora.dit.attention.layout import Attention, Mask, Route
from sora.dit.dit import SelfAttention
from sora.dit.layers.registers import Registers
from sora.system.torch_private import functional_collectives as collectives
from sora.tokens import Batch, PackedTokens, Segments, TextTokens, join, owners

Group = Any  # dist.ProcessGroup, which builds of torch without collectives lack


@dataclass(frozen=True, eq=False)
class AxisShard(Segments):
    """One rank's part of an axis, as segments: the part of each segment that lies in it. Parts follow one another and are as equal as
    possible.

    axis: the whole axis. sizes: tokens of each rank's part. rank: in the group. order, places: only for an axis joined from two axes that
    were each cut. `order` is the index, in rank-by-rank order, of each token of the whole axis, and `places` its inverse; None if the
    tokens already come in order.
    """

    axis: Segments
    sizes: tuple[int, ...]
    rank: int
    group: Group
    order: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def cut(cls, whole: Segments, group: Group) -> AxisShard:
        """This rank's part of an axis."""
        ranks, rank, total = dist.get_world_size(group), dist.get_rank(group), whole.total
        bounds = [total * number // ranks for number in range(ranks + 1)]
        sizes = tuple(after - before for before, after in pairwise(bounds))
        ends = [(held - bounds[rank]).clamp(0, sizes[rank]) for held in (whole.host, whole.cu_seqlens)]
        return cls(host=ends[0], cu_seqlens=ends[1], axis=whole, sizes=sizes, rank=rank, group=group)

    def _each(self, change: Callable[[Any], Any]) -> AxisShard:
        moved = {name: None if value is None else change(value) for name, value in (("order", self.order), ("places", self.places))}
        return replace(self, cu_seqlens=change(self.cu_seqlens), axis=self.axis._each(change), **moved)

    @property
    def whole(self) -> Segments:
        return self.axis

    def part(self, whole: Segments) -> Segments:
        return AxisShard.cut(whole, self.group)

    def mine(self, x: Tensor) -> Tensor:
        first = sum(self.sizes[: self.rank])
        return x[first : first + self.sizes[self.rank]]

    def everyones(self, x: Tensor) -> Tensor:
        return _Gathered.apply(x, self.sizes, self.rank, self.group)  # pyright: ignore[reportReturnType]

    def added(self, sums: Tensor) -> Tensor:
        return _Added.apply(sums, self.group)  # pyright: ignore[reportReturnType]

    def beside(self, other: Segments) -> AxisShard:
        assert isinstance(other, AxisShard)
        whole, sizes = join(self.axis, other.axis), (self.sizes, other.sizes)
        # A rank keeps its tokens of the joint axis in the order of that axis.
        ranks = torch.cat([owners(Segments.of(each).to(whole.order.device, non_blocking=True)) for each in sizes])
        places = torch.argsort(ranks.index_select(0, whole.order), stable=True)
        here = torch.arange(len(places), device=places.device)
        ends = Segments.beside(self, other)
        return AxisShard(
            host=ends.host,
            cu_seqlens=ends.cu_seqlens,
            axis=whole.segments,
            sizes=tuple(first + second for first, second in zip(*sizes, strict=True)),
            rank=self.rank,
            group=self.group,
            order=torch.empty_like(places).scatter_(0, places, here),
            places=places,
        )


class Ulysses:
    """Attention whose queries and keys are parts of an axis: each rank computes some of the heads on the whole axis. On whole axes it calls
    the wrapped attention."""

    def __init__(self, attention: Attention, ranks: int) -> None:
        self.attention, self.ranks = attention, ranks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        if not isinstance(q_segments, AxisShard) or not isinstance(k_segments, AxisShard):
            assert type(q_segments) is type(k_segments), "queries and keys are cut over context ranks both or neither"
            return self.attention(q, k, v, q_segments, k_segments, mask)
        if q_segments is k_segments:
            q, k, v = self._by_heads(q_segments, q, k, v)
        else:
            (q,), (k, v) = self._by_heads(q_segments, q), self._by_heads(k_segments, k, v)
        o = self.attention(q, k, v, q_segments.axis, k_segments.axis, None if mask is None else replace(mask, layout=mask.layout.uncut))
        return self._by_tokens(q_segments, o)

    def _by_heads(self, part: AxisShard, *mine: Float[Tensor, "_ _ E"]) -> Sequence[Tensor]:
        """Exchange all heads of this rank's tokens for this rank's heads of all tokens; several tensors in one message."""
        apart = [x.unflatten(1, (self.ranks, -1)) for x in mine]
        sent = torch.cat(apart, dim=2).transpose(0, 1).flatten(0, 1)  # C n h E
        came = collectives.all_to_all_single_autograd(sent.contiguous(), list(part.sizes), [len(mine[0])] * self.ranks, part.group)
        came = came if part.order is None else came.index_select(0, part.order)
        return came.split([x.shape[2] for x in apart], dim=1)

    def _by_tokens(self, part: AxisShard, o: Float[Tensor, "N h E"]) -> Float[Tensor, "n H E"]:
        """Exchange this rank's heads of all tokens for all heads of this rank's tokens."""
        o = o if part.places is None else o.index_select(0, part.places)
        count = part.sizes[part.rank]
        came = collectives.all_to_all_single_autograd(o.contiguous(), [count] * self.ranks, list(part.sizes), part.group)
        return came.unflatten(0, (self.ranks, count)).transpose(0, 1).flatten(1, 2)


class Slicer:
    """Cuts packs over the ranks of a group, for a task that trains on packs.

    Raises:
        ValueError: a pack's tokens do not divide over the ranks, so that one rank would wait for another in every layer.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def pack(self, batch: Batch, noised: Noised) -> tuple[Batch, Noised]:
        """This rank's tokens of a pack that all ranks of the group have. The text is not cut here: see `words`."""
        ranks = dist.get_world_size(self.group)
        if batch.tokens.segments.total % ranks:
            raise ValueError(
                f"a pack of {batch.tokens.segments.total} tokens does not divide over {ranks} context ranks; set plan.budget to a multiple"
                f" of trainer.context={ranks}"
            )
        part = AxisShard.cut(batch.tokens.segments, self.group)
        levels = replace(noised.levels, index=part.mine(noised.levels.index))
        cut = Noised(_cut(noised.tokens, part), part.mine(noised.eps), levels, part.mine(noised.mask))
        return replace(batch, tokens=_cut(batch.tokens, part), conditions=part.mine(batch.conditions)), cut

    def words(self, text: TextTokens) -> TextTokens:
        """This rank's text tokens."""
        part = AxisShard.cut(text.segments, self.group)
        return replace(text, states=part.mine(text.states), segments=part)


def _cut(tokens: PackedTokens, part: AxisShard) -> PackedTokens:
    return replace(tokens, patches=part.mine(tokens.patches), positions=part.mine(tokens.positions), segments=part)


@runtime_checkable
class Network(Protocol):
    """A network all of whose attention goes through one `route`."""

    route: Route


@runtime_checkable
class Sliced(Protocol):
    """A task with a network of packed tokens, which cuts its packs by `slicer` unless that is None."""

    dit: Any
    slicer: Slicer | None


def spread_context(task: nn.Module, mesh: DeviceMesh) -> None:
    """Let the ranks of `mesh` (one axis) share every pack of a task. Weights stay whole; the caller must sum gradients over `mesh`.

    Raises:
        ValueError: the task has no packs, its network's heads do not divide over the ranks, or a part of the network cannot be cut.
    """
    ranks = mesh.size()
    if not isinstance(task, Sliced) or not isinstance(task.dit, Network):
        raise ValueError(
            f"trainer.context={ranks} cuts packs of tokens over ranks, and {type(task).__name__} trains on none; set trainer.context=1"
        )
    for module in task.dit.modules():
        if isinstance(module, Registers):
            raise ValueError(
                f"dit.registers belong to whole clips, which trainer.context={ranks} ranks cut; set registers=null or context=1"
            )
        if isinstance(module, SelfAttention) and (module.heads % ranks or module.kv_heads % ranks):
            raise ValueError(
                f"{module.heads} heads with {module.kv_heads} of keys do not divide over trainer.context={ranks} ranks; change dit.heads,"
                " dit.kv_heads or trainer.context"
            )
    task.dit.route.attention = Ulysses(task.dit.route.attention, ranks)
    task.slicer = Slicer(mesh.get_group())


class _Added(torch.autograd.Function):
    """The sum over the ranks of a group, each of which goes on with it and computes a part of the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _sum(grads[0], ctx.group), None


class _Gathered(torch.autograd.Function):
    """The rows of all ranks, in the order of the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], rank: int, group: Group) -> Tensor:
        ctx.sizes, ctx.rank, ctx.group = sizes, rank, group
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # all ranks' messages need one size
        padded[: len(x)] = x
        everyones = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyones, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(everyones, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first = sum(ctx.sizes[: ctx.rank])
        return _sum(grads[0], ctx.group)[first : first + ctx.sizes[ctx.rank]], None, None, None


def _sum(x: Tensor, group: Group) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total
