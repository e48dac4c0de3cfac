"""A named mesh of ranks: which part of the model each holds, and which data it reads. One strategy for all ways of training on several
ranks.

replicate x shard x context x tensor = all ranks

    replicate   copies of the model, each with its own data                 DDP: (n, 1, 1, 1)
    shard       ranks that hold one copy together, each with its own data   FSDP: (1, n, 1, 1)   HSDP: (nodes, devices of a node, 1, 1)
    context     ranks that share every pack, each with a part of its tokens
    tensor      ranks that share every matrix product

Ranks that differ only in context or tensor read the same packs. The tensor axis varies fastest, so that the ranks that communicate most lie
nearest. Sharded weights are sharded over shard x context.

How a network is divided over an axis is passed in (`Spreaders`), because this module must know nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import timedelta
from functools import cache, partial
from math import prod
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from sora.parallel.summing import over_ranks, power_of_two
from sora.system.terminal import counted

AXES = ("replicate", "shard", "context", "tensor")
AHEAD = 2  # number of blocks whose weights are gathered ahead of the one that computes


@dataclass(frozen=True)
class Sizes:
    """The number of ranks along each axis of a mesh.

    Raises:
        ValueError: an axis has no ranks.
    """

    replicate: int
    shard: int
    context: int
    tensor: int

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ValueError(f"{', '.join(f'trainer.{axis}={size}' for axis, size in self.named)} must each be at least 1")

    @property
    def named(self) -> list[tuple[str, int]]:
        return list(zip(AXES, astuple(self), strict=True))

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in self.named if size > 1) or "one rank"

    @property
    def ranks(self) -> int:
        return prod(astuple(self))

    def refuse_idle(self, count: int, *, by: str = "were started") -> None:
        """Raise ValueError unless the mesh has `count` ranks: others would idle or train a duplicate. by: how they came, for the
        message."""
        if self.ranks != count:
            said = " x ".join(f"{axis} {size}" for axis, size in self.named)
            raise ValueError(f"the mesh of {said} has {counted(self.ranks, 'rank')}, but {count} {by}; change trainer.… or the job")


class ShardDimension(Protocol):
    """Returns the dimension along which to cut a parameter into a number of shards."""

    def __call__(self, parameter: nn.Parameter, *, shards: int) -> Shard: ...


@dataclass(frozen=True)
class Spreaders:
    """The functions that divide a task over the axes of a mesh.

    context, tensor: change a task so that the ranks of the axis share its packs, or its matrix products. encoding: changes a task that
    encodes while it trains, so that ranks with the same packs share that work. cut: where weights are cut into shards, after `tensor` has
    run.
    """

    context: Callable[[nn.Module, DeviceMesh], None]
    tensor: Callable[[nn.Module, DeviceMesh], None]
    encoding: Callable[[nn.Module, ProcessGroup], None]
    cut: ShardDimension


@dataclass(frozen=True)
class Seat:
    """A rank's place in the mesh.

    readers: number of groups of ranks with their own data. reader: this rank's group. averaged: number of ranks over which gradients are
    averaged, unless they are `ordered`. first_of_tokens: whether it is the first of the ranks that compute the loss of the same tokens.
    first_of_packs: whether it is the first of those with the same packs.
    """

    readers: int
    reader: int
    averaged: int
    first_of_tokens: bool
    first_of_packs: bool

    @classmethod
    @cache
    def of(cls, sizes: Sizes, rank: int) -> Seat:
        """The seat of `rank`; ranks are numbered along the last axis first."""
        reader, inside = divmod(rank, sizes.context * sizes.tensor)
        return cls(
            readers=sizes.replicate * sizes.shard,
            reader=reader,
            averaged=sizes.ranks // sizes.tensor,
            first_of_tokens=inside % sizes.tensor == 0,
            first_of_packs=inside == 0,
        )


def seat(trainer: Trainer) -> Seat:
    """This rank's seat, which is known before the ranks can communicate."""
    strategy = trainer.strategy
    return Seat.of(strategy.sizes if isinstance(strategy, MeshStrategy) else _copies(trainer.world_size), trainer.global_rank)


def ordered(trainer: Trainer) -> bool:
    """Whether gradients are summed over a step's packs in an order that does not depend on the number of ranks (`sora.parallel.summing`).

    True where deterministic algorithms are asked for; without them bits differ from run to run, whatever the order.
    """
    strategy = trainer.strategy
    return strategy.ordered if isinstance(strategy, MeshStrategy) else torch.are_deterministic_algorithms_enabled()


@cache
def _copies(count: int) -> Sizes:
    return Sizes(count, 1, 1, 1)


class MeshStrategy(ModelParallelStrategy):
    """A strategy for whole copies that average gradients (DDP), or for sharded weights, gradients and optimiser states (FSDP2).

    sharded: true for FSDP2. spreaders: divide a task over context and tensor ranks, and weights into shards. bf16: with FSDP2, gather
    weights and compute in bf16, and reduce gradients in fp32. deterministic: if the whole copies are a power of two and share no pack, sum
    gradients after the last backward, in an order that does not depend on the number of copies; else torch's DDP averages them during the
    backward.

    Raises:
        ValueError: whole copies were asked for, but several ranks to hold one; or, when training starts, the mesh does not have all ranks
            that were started.
    """

    def __init__(self, *, sizes: Sizes, sharded: bool, spreaders: Spreaders, bf16: bool, deterministic: bool, timeout: timedelta) -> None:
        if sizes.shard > 1 and not sharded:
            raise ValueError(f"trainer.shard={sizes.shard} ranks hold one copy of the weights only with trainer.sharded=true")
        super().__init__(data_parallel_size=sizes.ranks // sizes.tensor, tensor_parallel_size=sizes.tensor, timeout=timeout)
        self.sizes, self.sharded, self._spreaders = sizes, sharded, spreaders
        self._policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
        self._replicas: DistributedDataParallel | None = None
        self.ordered = deterministic and not sharded and sizes.ranks == sizes.replicate and power_of_two(sizes.ranks)

    def setup_environment(self) -> None:
        self.sizes.refuse_idle(self.world_size)
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        self.lay(self.root_device.type)

    def lay(self, device: str) -> None:
        """Arrange the ranks of the process group in the mesh."""
        self._device_mesh = init_device_mesh(device, astuple(self.sizes), mesh_dim_names=AXES)

    def spread(self, task: nn.Module) -> None:
        """Divide a task over the mesh, without changing its code."""
        sizes = self.sizes
        if sizes.context > 1:
            self._spreaders.context(task, self.device_mesh["context"])
        if sizes.tensor > 1:
            self._spreaders.tensor(task, self.device_mesh["tensor"])
        if sizes.context * sizes.tensor > 1:
            self._spreaders.encoding(task, self.device_mesh["context", "tensor"]._flatten("same_packs").get_group())
        if self.sharded or sizes.tensor > 1:
            self._shard(task)
        elif self.ordered:
            self._alike(task)
        else:
            self._replicas = self._replicated(task)

    def run(self, task: nn.Module, prepared: Any) -> Any:
        """Run the task on one pack, through DDP where it averages gradients in the backward."""
        return (self._replicas or task)(prepared)

    def sum_up(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sum gradients over ranks after the last backward of a step, if they are `ordered`; else the backward has done so."""
        if self.ordered and self.sizes.ranks > 1:
            over_ranks(parameters)

    def _alike(self, task: nn.Module) -> None:
        """Give every rank the weights of the first, as DDP does."""
        self.precision_plugin.convert_module(task.to(self.root_device))
        for value in task.state_dict().values():
            torch.distributed.broadcast(value, src=0)

    def _replicated(self, task: nn.Module) -> DistributedDataParallel:
        task = self.precision_plugin.convert_module(task.to(self.root_device))  # before DDP assigns its gradients to buckets
        return DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _shard(self, task: nn.Module) -> None:
        """Make a unit of FSDP of each block in each list of blocks, and one of the rest."""
        mesh = self._sharding_mesh()
        cut = partial(self._spreaders.cut, shards=mesh.size(mesh.ndim - 1))
        for blocks in [module for module in task.modules() if isinstance(module, nn.ModuleList)]:
            units = [fully_shard(block, mesh=mesh, mp_policy=self._policy, shard_placement_fn=cut) for block in blocks]
            for number, unit in enumerate(units):
                unit.set_modules_to_forward_prefetch(units[number + 1 : number + 1 + AHEAD])
                unit.set_modules_to_backward_prefetch(units[max(0, number - AHEAD) : number][::-1])
        fully_shard(task, mesh=mesh, mp_policy=self._policy, shard_placement_fn=cut)

    def _sharding_mesh(self) -> DeviceMesh:
        """The mesh that weights are sharded over: (copies, shards), or the shards alone if there is one copy."""
        mesh = self.device_mesh
        copies, shards = mesh["replicate"], mesh["shard"]
        if self.sizes.context > 1 and self.sharded:
            shards = mesh["shard", "context"]._flatten("shard_context")
        elif self.sizes.context > 1:
            copies = mesh["replicate", "context"]._flatten("replicate_context")
        return DeviceMesh._concatenate([copies, shards]) if copies.size() > 1 else shards

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Between the packs of a step, do not reduce gradients over copies of the model; FSDP still reduces them within a copy."""
        if self._replicas is not None:
            with self._replicas.no_sync():
                yield
            return
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)] if self.model is not None else []
        for unit in units:
            unit.set_requires_all_reduce(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_all_reduce(True, recurse=False)
