"""Tensor parallelism of a network's blocks, with tokens spread over the ranks between its matrices (sequence parallelism).

Shoeybi et al. 2019 ("Megatron-LM"), 3, and Korthikanti et al. 2022, 4.2.2. Of every attention a rank has some heads, of every MLP some
hidden channels, for all tokens; norms, modulation and residual sums it does for its own tokens. From outside, to plain modules:

    embed -> [ own rows -> norm -> all rows -> own heads or channels -> sum over ranks, own rows ] x 2 x depth -> all rows -> prediction

Parameters keep their names and shapes, as DTensors over the axis (`sora.training.shares`). What is computed outside the blocks all ranks
compute alike; on a GPU that takes deterministic algorithms for the ranks' copies of it to stay equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from sora.dit.dit import Context, CrossAttention, DiT, GeluMlp, SelfAttention, Stream
from sora.dit.layout import Layout
from sora.dit.lean import LeanBlock
from sora.dit.mlps import SwiGluMlp, TanhGeluMlp
from sora.dit.modulation import Projection
from sora.dit.norms import AcrossHeads
from sora.dit.published.network import PublishedDiT
from sora.tokens import Segments, join
from sora.training.collectives import copied, gathered, joined, scattered, split, total
from sora.training.shares import EVERYWHERE, Axis, Share, placed, shares


def spread_tensor(task: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the blocks of every network of a task over the ranks of a mesh of one axis; each rank comes with the same whole weights.

    Before `fully_shard`, which is then told by `beside` where to cut. These ranks must be given the same packs.

    Raises:
        ValueError: there is no network, or the ranks cannot share it; nothing has been changed then.
    """
    axis = Axis(mesh, mesh.get_group(), mesh.get_local_rank(), mesh.size())
    if axis.size == 1:
        return
    networks = [module for module in task.modules() if isinstance(module, DiT | PublishedDiT)]
    if not networks:
        raise ValueError(f"trainer.tensor={axis.size} splits the blocks of a denoising network, and this task has none; choose 1")
    planned = [(block, shares(block, number, axis)) for network in networks for number, block in enumerate(network.blocks)]
    for block, found in planned:
        for module in block.modules():
            _change(module, axis)
        if isinstance(block, LeanBlock):
            block.__class__ = _LeanBranches
        _spread(block, _Spread, found, axis)
    for network in networks:
        _spread(network, _SpreadNetwork, {}, axis)
    for other in (*task.children(), task):
        _spread(other, _Spread, {}, axis)


def beside(parameter: nn.Parameter, *, shards: int) -> Shard:
    """Where `fully_shard` is to cut a parameter into so many shards: along its rows, or its columns if tensor ranks share the rows.

    Raises:
        ValueError: the columns do not divide.
    """
    placements = parameter.placements if isinstance(parameter, DTensor) else ()
    if not any(isinstance(one, Shard | _StridedShard) and one.dim == 0 for one in placements):
        return Shard(0)
    if parameter.shape[1] % shards:
        raise ValueError(
            f"trainer.shard={shards} does not divide the {parameter.shape[1]} columns of a matrix whose rows trainer.tensor shares;"
            " choose another trainer.shard, or dit.width"
        )
    return Shard(1)


# ---- parameters: whole for everybody who asks by name, this rank's share while a module computes


class _Slot(NamedTuple):
    """Where a parameter is, and what a rank has of it."""

    owner: nn.Module
    key: str
    share: Share


class _Shared(NamedTuple):
    """The parameters of one module. summed: ranks use them for different tokens, so that gradients of what all have are to be added."""

    slots: list[_Slot]
    axis: Axis
    summed: bool

    @contextmanager
    def computing(self) -> Iterator[None]:
        """This rank's tensors in the places of the parameters."""
        held = [slot.owner._parameters[slot.key] for slot in self.slots]
        local = [value.to_local() if isinstance(value, DTensor) else value for value in held]
        if self.summed:
            alike = [place for place, slot in enumerate(self.slots) if slot.share.placement.is_replicate()]
            for place, value in zip(alike, copied([local[place] for place in alike], self.axis.group), strict=True):  # pyright: ignore[reportArgumentType]
                local[place] = value
        for slot, value in zip(self.slots, local, strict=True):
            slot.owner._parameters[slot.key] = slot.share.use(value)  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            for slot, value in zip(self.slots, held, strict=True):
                slot.owner._parameters[slot.key] = value


def _spread(module: nn.Module, kind: type, found: Mapping[str, Share], axis: Axis) -> None:
    """Give a module its share of each parameter that nothing inside it has taken yet; those that are not found are whole on every rank."""
    slots: list[_Slot] = []
    made: dict[int, nn.Parameter] = {}  # a parameter with two names stays one
    for name, owner in module.named_modules():
        for key, value in list(owner._parameters.items()):
            if value is not None and not isinstance(value, DTensor):
                share = found.get(f"{name}.{key}" if name else key, EVERYWHERE)
                if id(value) not in made:
                    made[id(value)] = placed(value, share, axis)
                slots.append(_Slot(owner, key, share))
                owner._parameters[key] = made[id(value)]
    if slots:
        module.__class__ = _class(kind, type(module))
        module._shared = _Shared(slots, axis, summed=bool(found))  # pyright: ignore[reportArgumentType]


@cache
def _class(first: type, second: type) -> type:
    # A class, because recomputation calls the forward of a block's class; one for all of a kind, because compilers tell classes apart.
    return type(second.__name__, (first, second), {})


class _Spread(nn.Module):
    """Computes with this rank's shares."""

    _shared: _Shared

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with self._shared.computing():
            return super().forward(*inputs, **named)  # pyright: ignore[reportAttributeAccessIssue]


class _SpreadNetwork(_Spread):
    """Whose tokens are spread while its blocks run."""

    def run(self, x: Float[Tensor, "N D"], states: Float[Tensor, "M D"], context: Context) -> Float[Tensor, "N D"]:
        axis, tokens = self._shared.axis, len(x)
        out = super().run(*_entered(*filled(x, states, context, size=axis.size), axis))  # pyright: ignore[reportAttributeAccessIssue]
        return joined(out, axis.group)[:tokens]


# ---- modules: the same formulas, with the exchange before or behind them


class _Into(nn.Linear):
    """From this rank's tokens to its channels of all tokens."""

    axis: Axis

    def forward(self, x: Float[Tensor, "R C"]) -> Float[Tensor, "N E"]:
        return super().forward(gathered(x, self.axis.group))


class _OutOf(nn.Linear):
    """From this rank's channels of all tokens to its tokens."""

    axis: Axis

    def forward(self, x: Float[Tensor, "N E"]) -> Float[Tensor, "R D"]:
        return scattered(super().forward(x), self.axis.group)


class _SelfAttention(SelfAttention):
    axis: Axis

    def project(self, x: Float[Tensor, "R D"], rotation: Complex[Tensor, "N J E2"] | None) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(gathered(x, self.axis.group), rotation)


class _LeanBranches(LeanBlock):
    """Its branches read weights rather than call layers: the exchange is around them."""

    _shared: _Shared

    def _self(self, x: Float[Tensor, "R D"], context: Context) -> Float[Tensor, "R D"]:
        group = self._shared.axis.group
        return scattered(super()._self(gathered(x, group), context), group)

    def _cross(self, x: Float[Tensor, "R D"], text: Float[Tensor, "M D"], context: Context) -> Float[Tensor, "R D"]:
        group = self._shared.axis.group
        return scattered(super()._cross(gathered(x, group), text, context), group)

    def _mlp(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        group = self._shared.axis.group
        return scattered(super()._mlp(gathered(x, group)), group)


class _Projection(Projection):
    axis: Axis

    def forward(self, level: Float[Tensor, "U C"]) -> Float[Tensor, "U S"]:
        return gathered(super().forward(level).mT, self.axis.group).mT


class _AcrossHeads(AcrossHeads):
    axis: Axis

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        wide = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
        mean = total(wide.square().sum(1, keepdim=True), self.axis.group) / (wide.shape[1] * self.axis.size)
        return (wide * torch.rsqrt(mean + self.eps) * self.gain).to(x.dtype).view_as(x)


def _change(module: nn.Module, axis: Axis) -> None:
    """Make a module of a block what a rank does of it."""
    match module:
        case SelfAttention():
            module.heads, module.kv_heads = module.heads // axis.size, module.kv_heads // axis.size
            _become(module, _SelfAttention, axis)
            _become(module.out, _OutOf, axis)
        case CrossAttention():
            module.heads //= axis.size
            _become(module.q, _Into, axis)
            _become(module.out, _OutOf, axis)
        case GeluMlp() | TanhGeluMlp() | SwiGluMlp():
            _become(module.up, _Into, axis)
            _become(module.down, _OutOf, axis)
        case Projection():
            _become(module, _Projection, axis)
        case AcrossHeads():
            _become(module, _AcrossHeads, axis)


def _become(module: nn.Module, kind: type, axis: Axis) -> None:
    if issubclass(kind, type(module)):  # all but the identity that ends the words of a last dual-stream block
        module.__class__ = kind
        module.axis = axis  # pyright: ignore[reportArgumentType]


# ---- tokens


def _entered(x: Tensor, states: Tensor, context: Context, axis: Axis) -> tuple[Tensor, Tensor, Context]:
    """Tokens, words and what modulates them as a rank has them: its own rows of what is a token, the rest whole."""
    group, levels, words, rotation = axis.group, context.levels, context.text_levels, context.rotation
    if words is None:  # words are read, by some heads on each rank
        level, modulation, states = copied([levels.level, levels.modulation, states], group)
    else:
        level, modulation, *of_words = copied([levels.level, levels.modulation, words.level, words.modulation], group)
        words, states = Stream(of_words[0], of_words[1], _own_rows(words.index, axis)), split(states, group)
    if rotation is not None and rotation.shape[1] > 1:
        rotation = rotation.chunk(axis.size, dim=1)[axis.rank]
    levels = Stream(level, modulation, _own_rows(levels.index, axis))
    return split(x, group), states, context._replace(rotation=rotation, levels=levels, text_levels=words)


def _own_rows(index: Tensor, axis: Axis) -> Tensor:
    return index.unflatten(0, (axis.size, -1))[axis.rank]


def filled(x: Tensor, states: Tensor, context: Context, *, size: int) -> tuple[Tensor, Tensor, Context]:
    """The same with as much more padding behind the tokens, and the words if they are tokens too, as makes both multiples of `size`."""
    more, words = -len(x) % size, -len(states) % size if context.joined is not None else 0
    if not more and not words:
        return x, states, context
    layout, rotation, segments, text_levels = context.layout, context.rotation, context.text_segments, context.text_levels
    if more:
        grids = torch.cat((layout.grids[:-1], layout.grids[-1:] + torch.tensor([[0, 0, more]])))
        last = torch.arange(more, device=x.device, dtype=layout.coordinates.dtype)[:, None] + layout.segments.cu_seqlens.diff()[-1]
        places = torch.cat((layout.coordinates, torch.cat((last.new_zeros(more, 2), last), dim=1)))
        layout = Layout(_longer(layout.segments, more), grids, places)
        rotation = torch.cat((rotation, rotation.new_ones(more, *rotation.shape[1:]))) if rotation is not None else None
    if words and text_levels is not None:
        segments, text_levels = _longer(segments, words), text_levels._replace(index=_padded(text_levels.index, words))
    context = Context(
        layout=layout,
        rotation=rotation,
        levels=context.levels._replace(index=_padded(context.levels.index, more)),
        text_segments=segments,
        text_levels=text_levels,
        joined=join(layout.segments, segments) if context.joined is not None else None,
    )
    return _padded(x, more), _padded(states, words), context


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat((x, x.new_zeros(rows, *x.shape[1:]))) if rows else x


def _longer(segments: Segments, more: int) -> Segments:
    """With so many more tokens in the last segment, which is the padding."""
    return Segments(*(torch.cat((ends[:-1], ends[-1:] + more)) for ends in (segments.host, segments.cu_seqlens)))
