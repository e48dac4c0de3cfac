"""How each parameter of a block is sharded over the tensor axis, and what a rank computes with.

Matrices that map to heads or hidden channels are cut along their outputs, matrices that map from them along their inputs. Each part of a
stacked matrix (queries, keys and values; gates and values of an MLP) is cut by itself. Vectors are replicated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from sora.dit.blocks.dual import DualBlock
from sora.dit.blocks.expert import ExpertBlock
from sora.dit.blocks.lean import LeanBlock
from sora.dit.blocks.parallel import ParallelBlock
from sora.dit.blocks.plain import PlainBlock
from sora.dit.blocks.single import SingleBlock
from sora.dit.dit import Block, CrossAttention, GeluMlp, HeadNorm, SelfAttention
from sora.dit.layers.mlps import SwiGluMlp, TanhGeluMlp
from sora.dit.layers.modulation import LowRankProjection
from sora.dit.layers.norms import AcrossHeads, AffineLayerNorm, HeadLayerNorm
from sora.dit.published.latte import TemporalBlock
from sora.dit.published.wan import NormedCrossBlock
from sora.system.torch_private import StridedShard

BLOCKS = (Block, LeanBlock, NormedCrossBlock, PlainBlock, ParallelBlock, DualBlock, SingleBlock, ExpertBlock, TemporalBlock)
WHOLE = (nn.LayerNorm, AffineLayerNorm, HeadNorm, HeadLayerNorm)  # act on each token or each head by itself


class Axis(NamedTuple):
    """The ranks that share a network, this rank's index among them, and their number."""

    mesh: DeviceMesh
    group: ProcessGroup
    rank: int
    size: int


class ParameterSharding(NamedTuple):
    """placement: of the parameter over the axis. use: maps this rank's local tensor to what the module computes with."""

    placement: Placement
    use: Callable[[Tensor], Tensor]


def _all(part: Tensor) -> Tensor:
    return part


EVERYWHERE = ParameterSharding(Replicate(), _all)


def shares(block: nn.Module, number: int, axis: Axis, *, context: int) -> dict[str, ParameterSharding]:
    """The sharding of each parameter of a block, by name. context: number of context ranks, which divide each tensor rank's heads once
    more.

    Raises:
        ValueError: no rule says how to split the block or a module in it, or heads or channels do not divide.
    """
    told = isinstance(block, TemporalBlock) and block.told
    if told or not isinstance(block, BLOCKS):
        why = " and reads the places of whole clips," if told else ""
        _refuse(f"block {number} is a {type(block).__name__}{why} which has no plan for it", axis)
    found: dict[str, ParameterSharding] = {}
    for name, module in block.named_modules():
        found |= {f"{name}.{key}": share for key, share in _within(module, axis, context).items()}
        for key, _ in module.named_parameters(recurse=False):
            full = f"{name}.{key}" if name else key
            if module is block or isinstance(module, WHOLE):
                found[full] = EVERYWHERE
            elif full not in found:
                _refuse(f"{name} of block {number} is a {type(module).__name__}, which has no plan for it", axis)
    return found


def _within(module: nn.Module, axis: Axis, context: int) -> dict[str, ParameterSharding]:
    """The sharding of the parameters of one module; empty if the ranks do not split it."""
    match module:
        case SelfAttention():
            _divide(module.heads, "dit.heads", axis, context)
            _divide(module.kv_heads, "dit.kv_heads", axis, context)
            return _cut(module, {"qkv": 3, "q": 1, "kv": 2}, "out", axis)
        case CrossAttention():
            _divide(module.heads, "dit.heads", axis, context)
            return _cut(module, {"q": 1, "kv": 2}, "out", axis)
        case GeluMlp() | TanhGeluMlp() | SwiGluMlp():
            _divide(module.down.in_features, "the width inside an MLP (dit.width times dit.mlp_ratio)", axis)
            return _cut(module, {"up": 2 if isinstance(module, SwiGluMlp) else 1}, "down", axis)
        case LowRankProjection():
            _divide(module.up.out_features, "the channels of modulation (a multiple of dit.width)", axis)
            return _cut(module, {"up": 1}, None, axis) | ({} if module.down is None else {"down.weight": EVERYWHERE})
        case AcrossHeads():
            return {"gain": ParameterSharding(Replicate(), partial(_rows, axis, 1))}
        case _:
            return {}


def _cut(module: nn.Module, into: Mapping[str, int], out: str | None, axis: Axis) -> dict[str, ParameterSharding]:
    """The sharding of a module's linear layers. into: number of stacked matrices of each layer that maps to heads or channels. out: the
    layer that maps from them."""
    layers = {name: layer for name, layer in module.named_children() if isinstance(layer, nn.Linear)}
    found: dict[str, ParameterSharding] = {}
    for name, stacked in into.items():
        if name in layers:
            placement = Shard(0) if stacked == 1 else StridedShard(0, split_factor=stacked)
            found[f"{name}.weight"] = ParameterSharding(placement, _all)
            if layers[name].bias is not None:
                found[f"{name}.bias"] = ParameterSharding(Replicate(), partial(_rows, axis, stacked))
    if out in layers:
        found[f"{out}.weight"] = ParameterSharding(Shard(1), _all)
        if layers[out].bias is not None:
            found[f"{out}.bias"] = ParameterSharding(Replicate(), partial(_once, axis))
    return found


def placed(value: nn.Parameter, share: ParameterSharding, axis: Axis) -> nn.Parameter:
    """This rank's share, as a DTensor, of a parameter that is whole on every rank."""
    local, placement = value.detach(), share.placement
    if isinstance(placement, Shard | StridedShard):
        stacked = int(placement.split_factor) if isinstance(placement, StridedShard) else 1
        dim = placement.dim
        local = local.unflatten(dim, (stacked, axis.size, -1)).select(dim + 1, axis.rank).flatten(dim, dim + 1)
    local = local.clone(memory_format=torch.contiguous_format)
    whole = DTensor.from_local(local, axis.mesh, [placement], run_check=False, shape=value.shape, stride=value.stride())
    return nn.Parameter(whole, requires_grad=value.requires_grad)


def _rows(axis: Axis, stacked: int, vector: Tensor) -> Tensor:
    """The elements of a replicated vector that belong to this rank's rows of a matrix."""
    return vector.unflatten(0, (stacked, axis.size, -1))[:, axis.rank].flatten()


def _once(axis: Axis, vector: Tensor) -> Tensor:
    """A bias that only the first rank adds before a sum over ranks; others multiply it by 0, so that it has a gradient on every rank."""
    return vector if axis.rank == 0 else vector * 0


def _divide(count: int, what: str, axis: Axis, context: int = 1) -> None:
    if count % (axis.size * context):
        _refuse(f"{what} is {count}, which does not divide over {axis.size * context} ranks (tensor x context)", axis)


def _refuse(why: str, axis: Axis) -> None:
    raise ValueError(f"trainer.tensor={axis.size}: {why}; choose another trainer.tensor, or trainer=fsdp")
