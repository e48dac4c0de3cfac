"""Tensor parallelism of a network's blocks, with tokens spread over the ranks between its matrices (sequence parallelism).

Shoeybi et al. 2019 ("Megatron-LM"), 3, and Korthikanti et al. 2022, 4.2.2. A rank computes some heads of every attention and some hidden
channels of every MLP, for all tokens; it computes norms, modulation and residual sums for its own tokens. It is applied to plain modules:

    embed -> [ own rows -> norm -> all rows -> own heads or channels -> sum over ranks, own rows ] x 2 x depth -> all rows -> prediction

Parameters keep their names and shapes, as DTensors over the axis (`sora.parallel.tensor_plan`). All ranks repeat the computation outside
the blocks; on a GPU, their copies stay equal to the last bit only with deterministic algorithms.
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
    """Spread the blocks of every network of a task over the ranks of a one-axis mesh; each rank must start with the same whole weights.

    Call it after `spread_context` and before `fully_shard`, which must then cut where `beside` says. The ranks must get the same packs.

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
    # Every unit of `fully_shard` must swap in its own shares: its parameters are gathered only while the unit runs.
    units = [unit for blocks in task.modules() if isinstance(blocks, nn.ModuleList) for unit in blocks]
    for unit in reversed(units):  # the inner ones first
        _spread(unit, _Spread, {}, axis)
    for network in networks:
        network.route.attention = Fitted(network.route.attention)
        _spread(network, _SpreadNetwork, {}, axis)
    for other in (*task.children(), task):
        _spread(other, _Spread, {}, axis)


def _planned(network: DiT | PublishedDiT, axis: Axis) -> list[tuple[nn.Module, dict[str, ParameterSharding]]]:
    """The blocks, each with the sharding of its parameters, by name."""
    inside = network.route.attention
    context = inside.ranks if isinstance(inside, Ulysses) else 1  # context ranks divide each tensor rank's heads once more
    if any(block.joint != network.joint for block in network.blocks):
        raise ValueError(f"trainer.tensor={axis.size}: words are tokens in some blocks and only read in others; use trainer=fsdp")
    return [(block, shares(block, number, axis, context=context)) for number, block in enumerate(network.blocks)]


def beside(parameter: nn.Parameter, *, shards: int) -> Shard:
    """The dimension along which `fully_shard` must cut a parameter: its rows, or its columns if tensor ranks share the rows.

    Raises:
        ValueError: the columns do not divide into `shards`.
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


# ---- parameters: whole when asked for by name, this rank's share while a module computes


class _Slot(NamedTuple):
    """The module and key of a parameter, and how it is sharded."""

    owner: nn.Module
    key: str
    share: ParameterSharding


class _Shared(NamedTuple):
    """The parameters of one module. summed: ranks use them for different tokens, so gradients of replicated parameters must be summed."""

    slots: list[_Slot]
    axis: Axis
    summed: bool

    @torch.compiler.disable
    def enter(self) -> list[Tensor | None]:
        """Replace the parameters by this rank's local tensors; return the parameters."""
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
        """Put the parameters back."""
        for slot, value in zip(self.slots, held, strict=True):
            slot.owner._parameters[slot.key] = value  # pyright: ignore[reportArgumentType]


def _spread(module: nn.Module, kind: type, found: Mapping[str, ParameterSharding], axis: Axis) -> None:
    """Shard the parameters that no module inside this one has sharded yet; those without an entry in `found` are replicated."""
    slots: list[_Slot] = []
    made: dict[int, nn.Parameter] = {}  # a parameter that is registered under two names stays one
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
    # A class, because activation checkpointing calls the forward of a block's class; cached, because a compiler treats each class
    # separately.
    return type(second.__name__, (first, second), {})


class _Spread(nn.Module):
    """A module whose forward computes with this rank's local tensors."""

    _shared: _Shared

    @torch.compiler.disable(recursive=False)  # a compiled module inside gets plain tensors
    def forward(self, *inputs: Any, **named: Any) -> Any:
        held = self._shared.enter()
        try:
            return super().forward(*inputs, **named)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._shared.leave(held)


class _SpreadNetwork(_Spread):
    """A network whose tokens are spread over the ranks while its blocks run."""

    route: Route

    def run(self, x: Float[Tensor, "N D"], states: Float[Tensor, "M W"], context: Context) -> Float[Tensor, "N D"]:
        axis, tokens = self._shared.axis, len(x)
        fitted = self.route.attention
        assert isinstance(fitted, Fitted)
        fitted.needed |= tokens % axis.size > 0
        out = super().run(*_entered(x, states, context, axis))  # pyright: ignore[reportAttributeAccessIssue]
        return joined(out, axis.group)[:tokens]


# ---- modules: the same formulas, with communication before or after them


class _Into(nn.Linear):
    """A linear layer from this rank's tokens to its output channels, for all tokens."""

    axis: Axis

    def forward(self, x: Float[Tensor, "R C"]) -> Float[Tensor, "N E"]:
        return super().forward(gathered(x, self.axis.group))


class _OutOf(nn.Linear):
    """A linear layer from this rank's input channels, for all tokens, to its own tokens."""

    axis: Axis

    def forward(self, x: Float[Tensor, "N E"]) -> Float[Tensor, "R D"]:
        return scattered(super().forward(x), self.axis.group)


class _SelfAttention(SelfAttention):
    axis: Axis

    def project(self, x: Float[Tensor, "R D"], rotation: Complex[Tensor, "N J E2"] | None) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(gathered(x, self.axis.group), rotation)


class _LeanBranches(LeanBlock):
    """A lean block: its branches read weights and call no layers, so ranks communicate around the branches."""

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
    """Change a module of a block so that it computes this rank's share of it."""
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
    if issubclass(kind, type(module)):  # not the identity that ends the text stream of a last dual-stream block
        module.__class__ = kind
        module.axis = axis  # pyright: ignore[reportArgumentType]


# ---- tokens


class Fitted:
    """Attention on axes that may be padded: rows after the last segment take no part in it, and their output is 0.

    needed: whether any axis has been padded. Until then the segments' length is not read, because compilers cannot trace that.
    """

    def __init__(self, attention: Attention) -> None:
        self.attention, self.needed = attention, False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask: Mask | None = None) -> Tensor:
        if not self.needed:
            return self.attention(q, k, v, q_segments, k_segments, mask)
        asked, seen, rows = q_segments.total, k_segments.total, len(q)
        return _filled(self.attention(q[:asked], k[:seen], v[:seen], q_segments, k_segments, mask), rows - asked)


def _entered(x: Tensor, states: Tensor, context: Context, axis: Axis) -> tuple[Tensor, Tensor, Context]:
    """This rank's rows of the tokens, and of the text tokens if blocks update them, and the context that belongs to these rows.

    Axes that do not divide over the ranks are padded with rows of zeros, which lie in no segment.
    """
    group, levels, words, rotation, joint = axis.group, context.levels, context.text_levels, context.rotation, context.joined
    more, more_words = -len(x) % axis.size, -len(states) % axis.size
    if words is None or joint is None:  # blocks only read the text tokens, with some of the heads on each rank
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
    """The joint axis of tokens and text tokens that were padded by `more` and `more_words` rows; padding rows get any place."""
    order = torch.where(joint.order < tokens, joint.order, joint.order + more)
    return joint._replace(order=order, places=torch.cat((_filled(joint.places[:tokens], more), _filled(joint.places[tokens:], more_words))))


def _own_rows(index: Tensor, axis: Axis) -> Tensor:
    return _filled(index, -len(index) % axis.size).unflatten(0, (axis.size, -1))[axis.rank]


def _filled(x: Tensor, rows: int) -> Tensor:
    """The tensor with `rows` rows of zeros appended."""
    return torch.cat((x, x.new_zeros(rows, *x.shape[1:]))) if rows else x
