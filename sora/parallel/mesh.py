"""Ranks in a named mesh: what each holds of the model, and which data it reads. One strategy for all ways of training on several ranks.

replicate x shard x context x tensor = all ranks

    replicate   copies of the model, each with data of its own              DDP: (n, 1, 1, 1)
    shard       ranks that hold one copy together, with data of their own   FSDP: (1, n, 1, 1)   HSDP: (nodes, devices of a node, 1, 1)
    context     ranks that share every pack, each with a part of its tokens
    tensor      ranks that share every product

Ranks that differ in context or tensor alone read the same packs; the tensor axis runs fastest, so that what talks most lies nearest.
Where weights are sharded, they are so over shard x context: what ranks of a context group do not share is tokens only.

How a network is divided over an axis is given to the mesh (`Spreaders`), so that it knows of ranks alone.
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
AHEAD = 2  # blocks whose weights are gathered while one computes


@dataclass(frozen=True)
class Sizes:
    """Ranks along each axis of a mesh.

    Raises:
        ValueError: an axis has none.
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
        """Raise ValueError unless the mesh is all ranks that `count` `by` somebody: the rest would train a duplicate, or idle."""
        if self.ranks != count:
            said = " x ".join(f"{axis} {size}" for axis, size in self.named)
            raise ValueError(f"the mesh of {said} has {counted(self.ranks, 'rank')}, but {count} {by}; change trainer.… or the job")


class ShardDimension(Protocol):
    """Says along which dimension a parameter is cut into so many shards."""

    def __call__(self, parameter: nn.Parameter, *, shards: int) -> Shard: ...


@dataclass(frozen=True)
class Spreaders:
    """How a task is divided over the axes of a mesh.

    context, tensor: each changes a task so that the ranks of that axis share its packs, or its products. encoding: changes a task that
    encodes while it trains, so that ranks with the same packs share that work. cut: where weights are cut into shards, after `tensor`.
    """

    context: Callable[[nn.Module, DeviceMesh], None]
    tensor: Callable[[nn.Module, DeviceMesh], None]
    encoding: Callable[[nn.Module, ProcessGroup], None]
    cut: ShardDimension


@dataclass(frozen=True)
class Seat:
    """Where a rank sits. readers: how many ranks or groups of ranks read data of their own; reader: which of them this one is or is in.

    averaged: over how many ranks gradients are averaged, unless they are `ordered`. first_of_tokens: the first of those that compute the
    loss of the same tokens.
    first_of_packs: the first of those that have the same packs.
    """

    readers: int
    reader: int
    averaged: int
    first_of_tokens: bool
    first_of_packs: bool

    @classmethod
    @cache
    def of(cls, sizes: Sizes, rank: int) -> Seat:
        """Ranks are numbered along the last axis first."""
        reader, inside = divmod(rank, sizes.context * sizes.tensor)
        return cls(
            readers=sizes.replicate * sizes.shard,
            reader=reader,
            averaged=sizes.ranks // sizes.tensor,
            first_of_tokens=inside % sizes.tensor == 0,
            first_of_packs=inside == 0,
        )


def seat(trainer: Trainer) -> Seat:
    """This rank's; known before the ranks can talk."""
    strategy = trainer.strategy
    return Seat.of(strategy.sizes if isinstance(strategy, MeshStrategy) else _copies(trainer.world_size), trainer.global_rank)


def ordered(trainer: Trainer) -> bool:
    """Whether gradients are summed over a step's packs in an order that does not depend on the number of ranks (`sora.parallel.summing`).

    So they are where deterministic algorithms are asked for: only there are bits the same from run to run, whatever the order.
    """
    strategy = trainer.strategy
    return strategy.ordered if isinstance(strategy, MeshStrategy) else torch.are_deterministic_algorithms_enabled()


@cache
def _copies(count: int) -> Sizes:
    return Sizes(count, 1, 1, 1)


class MeshStrategy(ModelParallelStrategy):
    """Whole copies that average gradients (DDP), or weights, gradients and optimiser state in shards (FSDP2).

    sharded: which of the two. spreaders: how a task is divided over context and tensor ranks, and weights into shards.
    bf16: of shards, gather and compute with weights in bf16, and reduce gradients in fp32.
    deterministic: a power of two of whole copies, which share no pack, sum their gradients in an order that does not depend on how many
    they are, after the last backward; else torch's DDP averages them while it computes.

    Raises:
        ValueError: whole copies were asked for, and several ranks to hold one; or, when training starts, the mesh is not all ranks that
            were started.
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
        """Lay a task out over the mesh, from outside."""
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
        """The task on one pack, so that the backward averages gradients."""
        return (self._replicas or task)(prepared)

    def sum_up(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """After the last backward of a step: the sum over ranks, where no backward has taken it."""
        if self.ordered and self.sizes.ranks > 1:
            over_ranks(parameters)

    def _alike(self, task: nn.Module) -> None:
        """Every rank has the first one's weights, as DDP sees to."""
        self.precision_plugin.convert_module(task.to(self.root_device))
        for value in task.state_dict().values():
            torch.distributed.broadcast(value, src=0)

    def _replicated(self, task: nn.Module) -> DistributedDataParallel:
        task = self.precision_plugin.convert_module(task.to(self.root_device))  # before its gradients get their places in buckets
        return DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _shard(self, task: nn.Module) -> None:
        """Each block of each list of blocks is a unit, and the rest is one more."""
        mesh = self._sharding_mesh()
        cut = partial(self._spreaders.cut, shards=mesh.size(mesh.ndim - 1))
        for blocks in [module for module in task.modules() if isinstance(module, nn.ModuleList)]:
            units = [fully_shard(block, mesh=mesh, mp_policy=self._policy, shard_placement_fn=cut) for block in blocks]
            for number, unit in enumerate(units):
                unit.set_modules_to_forward_prefetch(units[number + 1 : number + 1 + AHEAD])
                unit.set_modules_to_backward_prefetch(units[max(0, number - AHEAD) : number][::-1])
        fully_shard(task, mesh=mesh, mp_policy=self._policy, shard_placement_fn=cut)

    def _sharding_mesh(self) -> DeviceMesh:
        """Copies x shards of weights."""
        mesh = self.device_mesh
        copies, shards = mesh["replicate"], mesh["shard"]
        if self.sizes.context > 1 and self.sharded:
            shards = mesh["shard", "context"]._flatten("shard_context")
        elif self.sizes.context > 1:
            copies = mesh["replicate", "context"]._flatten("replicate_context")
        return DeviceMesh._concatenate([copies, shards]) if copies.size() > 1 else shards

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Between the packs of a step, gradients are summed within a copy of the model only, and not over copies."""
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
