"""Ranks in a named mesh: copies of the model times shards of it. Lightning's loop, our meaning of who holds what.

replicate x shard = all ranks.      DDP: (n, 1)   FSDP: (1, n)   HSDP: (nodes, devices of a node)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import prod

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

AXES = ("replicate", "shard")
AHEAD = 2  # blocks whose weights are gathered while one computes


class MeshStrategy(ModelParallelStrategy):
    """FSDP2 over a mesh of `replicate` x `shard` ranks; all of them read data of their own.

    bf16: gather and compute with weights in bf16, reduce gradients in fp32.

    Raises:
        ValueError: when training starts, if the mesh is not all ranks that were started: the rest would train a duplicate, or idle.
    """

    def __init__(self, *, replicate: int, shard: int, bf16: bool, timeout: timedelta) -> None:
        if min(replicate, shard) < 1:
            raise ValueError(f"trainer.replicate={replicate} and trainer.shard={shard} must be at least 1")
        super().__init__(data_parallel_size=replicate * shard, tensor_parallel_size=1, timeout=timeout)
        self._sizes = (replicate, shard)
        self._policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()

    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        if prod(self._sizes) != self.world_size:
            said = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, self._sizes, strict=True))
            raise ValueError(
                f"the mesh of {said} has {prod(self._sizes)} ranks, but {self.world_size} were started; change trainer.… or the job"
            )
        self.lay(self.root_device.type)

    def lay(self, device: str) -> None:
        """Arrange the ranks of the process group in the mesh."""
        self._device_mesh = init_device_mesh(device, self._sizes, mesh_dim_names=AXES)

    def spread(self, task: nn.Module) -> None:
        """Shard a task from outside: each block of each list of blocks is a unit, and the rest is one more."""
        mesh = self._sharding_mesh()
        for blocks in [module for module in task.modules() if isinstance(module, nn.ModuleList)]:
            units = [fully_shard(block, mesh=mesh, mp_policy=self._policy) for block in blocks]
            for number, unit in enumerate(units):
                unit.set_modules_to_forward_prefetch(units[number + 1 : number + 1 + AHEAD])
                unit.set_modules_to_backward_prefetch(units[max(0, number - AHEAD) : number][::-1])
        fully_shard(task, mesh=mesh, mp_policy=self._policy)

    def _sharding_mesh(self) -> DeviceMesh:
        return self.device_mesh[AXES] if self._sizes[0] > 1 else self.device_mesh["shard"]

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Between the packs of a step, gradients are summed within a copy of the model only, and not over copies."""
        units = [module for module in self.model.modules() if isinstance(module, FSDPModule)] if self.model is not None else []
        for unit in units:
            unit.set_requires_all_reduce(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_all_reduce(True, recurse=False)
