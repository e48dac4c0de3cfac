"""Tensor parallelism of a network's blocks, with tokens spread over the ranks between its matrices (sequence parallelism).

Shoeybi et al. 2019 ("Megatron-LM"), 3, and Korthikanti et al. 2022, 4.2.2. Of every attention a rank has some heads, of every MLP some
hidden channels, for all tokens; norms, modulation and residual sums it does for its own tokens. From outside, to plain modules:

    embed -> [ own rows -> norm -> all rows -> own heads or channels -> sum over ranks, own rows ] x 2 x depth -> all rows -> prediction

Parameters keep their names and shapes, as DTensors over the axis (`sora.parallel.tensor_plan`). What is computed outside the blocks all
ranks
compute alike; on a GPU that takes deterministic algorithms for the ranks' copies of it to stay equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from sora.dit.attention.layout import Attention, Mask, Route
from sora.dit.blocks.lean import LeanBlock
from sora.dit.dit import Context, CrossAttention, DiT, GeluMlp, SelfAttention, Stream
from sora.dit.layers.mlps import SwiGluMlp, TanhGeluMlp
from sora.dit.layers.modulation import LowRankProjection
from sora.dit.layers.norms import AcrossHeads
from sora.dit.published.network import PublishedDiT
from sora.parallel.collectives import copied, gathered, joined, scattered, split, total
from sora.parallel.context import Ulysses
from sora.parallel.tensor_plan import EVERYWHERE, Axis, ParameterSharding, placed, shares
from sora.system.torch_private import StridedShard
from sora.tokens import Joined, Segments


def spread_tensor(task: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the blocks of every network of a task over the ranks of a mesh of one axis; each rank comes with the same whole weights.

    After `spread_context`, and before `fully_shard`, which is then told by `beside` where to cut. These ranks must be given the same packs.

    Raises:
        ValueError: there is no network, or the ranks cannot share it; nothing has been changed then.
    """
    axis = Axis(mesh, mesh.get_group(), mesh.get_local_rank(), mesh.size())
    if axis.size == 1:
        return
    networks = [module for module in task.modules() if isinstance(module, DiT | PublishedDiT)]
    if not networks:
        raise ValueError(f"trainer.tensor={axis.size} splits the blocks of a denoising network, and this task has none; choose 1")
    planned = [found for network in networks for found in _planned(network, axis)]
    for block, found in planned:
        for module in block.modules():
            _change(module, axis)
        if isinstance(block, LeanBlock):
            block.__class__ = _LeanBranches
        _spread(block, _Spread, found, axis)
    # Whatever `fully_shard` makes a unit computes with shares of its own: parameters are there only while the unit runs.
    units = [unit for blocks in task.modules() if isinstance(blocks, nn.ModuleList) for unit in blocks]
    for unit in reversed(units):  # the inner ones first
        _spread(unit, _Spread, {}, axis)
    for network in networks:
        network.route.attention = Fitted(network.route.attention)
        _spread(network, _SpreadNetwork, {}, axis)
    for other in (*task.children(), task):
        _spread(other, _Spread, {}, axis)


def _planned(network: DiT | PublishedDiT, axis: Axis) -> list[tuple[nn.Module, dict[str, ParameterSharding]]]:
    """The blocks, each with a rank's shares of it."""
    inside = network.route.attention
    context = inside.ranks if isinstance(inside, Ulysses) else 1  # which shares the heads that a tensor rank has once more
    if any(block.joint != network.joint for block in network.blocks):
        raise ValueError(f"trainer.tensor={axis.size}: words are tokens in some blocks and only read in others; use trainer=fsdp")
    return [(block, shares(block, number, axis, context=context)) for number, block in enumerate(network.blocks)]


def beside(parameter: nn.Parameter, *, shards: int) -> Shard:
    """Where `fully_shard` is to cut a parameter into so many shards: along its rows, or its columns if tensor ranks share the rows.

    Raises:
        ValueError: the columns do not divide.
    """
    placements = parameter.placements if isinstance(parameter, DTensor) else ()
    if not any(isinstance(one, Shard | StridedShard) and one.dim == 0 for one in placements):
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
    share: ParameterSharding


class _Shared(NamedTuple):
    """The parameters of one module. summed: ranks use them for different tokens, so that gradients of what all have are to be added."""

    slots: list[_Slot]
    axis: Axis
    summed: bool

    @torch.compiler.disable
    def enter(self) -> list[Tensor | None]:
        """Put this rank's tensors in the places of the parameters, which are returned."""
        held: list[Tensor | None] = [slot.owner._parameters[slot.key] for slot in self.slots]
        local = [value.to_local() for value in held if isinstance(value, DTensor)]
        if self.summed:
            alike = [place for place, slot in enumerate(self.slots) if slot.share.placement.is_replicate()]
            for place, value in zip(alike, copied([local[place] for place in alike], self.axis.group), strict=True):
                local[place] = value
        self.leave([slot.share.use(value) for slot, value in zip(self.slots, local, strict=True)])
        return held

    @torch.compiler.disable
    def leave(self, held: Sequence[Tensor | None]) -> None:
        """Put these in the places of the parameters."""
        for slot, value in zip(self.slots, held, strict=True):
            slot.owner._parameters[slot.key] = value  # pyright: ignore[reportArgumentType]


def _spread(module: nn.Module, kind: type, found: Mapping[str, ParameterSharding], axis: Axis) -> None:
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

    @torch.compiler.disable(recursive=False)  # what is compiled inside is given plain tensors
    def forward(self, *inputs: Any, **named: Any) -> Any:
        held = self._shared.enter()
        try:
            return super().forward(*inputs, **named)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._shared.leave(held)


class _SpreadNetwork(_Spread):
    """Whose tokens are spread while its blocks run."""

    route: Route

    def run(self, x: Float[Tensor, "N D"], states: Float[Tensor, "M W"], context: Context) -> Float[Tensor, "N D"]:
        axis, tokens = self._shared.axis, len(x)
        fitted = self.route.attention
        assert isinstance(fitted, Fitted)
        fitted.needed |= tokens % axis.size > 0
        out = super().run(*_entered(x, states, context, axis))  # pyright: ignore[reportAttributeAccessIssue]
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


class _Projection(LowRankProjection):
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
        case LowRankProjection():
            _become(module, _Projection, axis)
        case AcrossHeads():
            _become(module, _AcrossHeads, axis)


def _become(module: nn.Module, kind: type, axis: Axis) -> None:
    if issubclass(kind, type(module)):  # all but the identity that ends the words of a last dual-stream block
        module.__class__ = kind
        module.axis = axis  # pyright: ignore[reportArgumentType]


# ---- tokens


class Fitted:
    """An attention of axes that may be filled up: what stands behind the last segment is neither asked nor seen, and gets 0.

    needed: whether any has been; until then nobody asks the segments for their length, which compilers cannot see through.
    """

    def __init__(self, attention: Attention) -> None:
        self.attention, self.needed = attention, False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        if not self.needed:
            return self.attention(q, k, v, q_segments, k_segments, mask)
        asked, seen, rows = q_segments.total, k_segments.total, len(q)
        return _filled(self.attention(q[:asked], k[:seen], v[:seen], q_segments, k_segments, mask), rows - asked)


def _entered(x: Tensor, states: Tensor, context: Context, axis: Axis) -> tuple[Tensor, Tensor, Context]:
    """Tokens, words and what modulates them as a rank has them: its own rows of what is a token, the rest whole.

    Axes that do not divide over the ranks are filled up with rows of zeros, which lie in no segment.
    """
    group, levels, words, rotation, joint = axis.group, context.levels, context.text_levels, context.rotation, context.joined
    more, more_words = -len(x) % axis.size, -len(states) % axis.size
    if words is None or joint is None:  # words are read, by some heads on each rank
        level, modulation, states = copied([levels.level, levels.modulation, states], group)
    else:
        level, modulation, *of_words = copied([levels.level, levels.modulation, words.level, words.modulation], group)
        words, states = Stream(of_words[0], of_words[1], _own_rows(words.index, axis)), split(_filled(states, more_words), group)
        joint = _apart(joint, len(x), more, more_words)
    if rotation is not None:
        rotation = rotation if rotation.shape[1] == 1 else rotation.chunk(axis.size, dim=1)[axis.rank]
        rotation = _filled(rotation, more)
    levels = Stream(level, modulation, _own_rows(levels.index, axis))
    context = context._replace(rotation=rotation, levels=levels, text_levels=words, joined=joint)
    return split(_filled(x, more), group), states, context


def _apart(joint: Joined, tokens: int, more: int, more_words: int) -> Joined:
    """The same joint axis, of tokens and words that have been filled up by so many rows each; these get anything."""
    order = torch.where(joint.order < tokens, joint.order, joint.order + more)
    return joint._replace(order=order, places=torch.cat((_filled(joint.places[:tokens], more), _filled(joint.places[tokens:], more_words))))


def _own_rows(index: Tensor, axis: Axis) -> Tensor:
    return _filled(index, -len(index) % axis.size).unflatten(0, (axis.size, -1))[axis.rank]


def _filled(x: Tensor, rows: int) -> Tensor:
    """With so many rows of zeros behind it."""
    return torch.cat((x, x.new_zeros(rows, *x.shape[1:]))) if rows else x
