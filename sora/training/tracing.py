"""A training step of one rank of any mesh, without its memory, its devices or the other ranks: what it keeps, multiplies and sends.

The task, the strategy, the optimiser and the average are those that train; only their numbers are missing (torch's FakeTensor), and the
other ranks are a process group that answers at once (torch's "fake" backend). Every tensor lies on the CPU here, and is as large on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # noqa: F401  what collectives give, without numbers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.overrides import TorchFunctionMode

from sora.tokens import Batch, Movable, Segments
from sora.training.mesh import MeshStrategy
from sora.training.module import TrainingModule
from sora.training.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Of one rank and one optimiser step; bytes, unless said otherwise.

    weights, average, moments: what lies there always. gradients: what lies there when the backward has ended. kept: by a forward pass for
    its backward, the most of the packs. largest: of everything, at any time. flops, attention: executed, what is computed again included.
    sent, calls: by axis of the mesh. layout: how many ranks each axis has, and how far apart they are numbered. saved: a checkpoint's, all
    ranks together. whole: the weights, unsharded, as every process makes them. numbers: of the weights.
    """

    weights: int
    average: int
    moments: int
    gradients: int
    kept: int
    largest: int
    flops: int
    attention: int
    sent: Mapping[str, int]
    calls: Mapping[str, int]
    layout: Mapping[str, tuple[int, int]]
    saved: int
    whole: int
    numbers: int


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """Be the first of so many ranks, alone.

    Raises:
        ValueError: this process is one of several already.
    """
    if dist.is_initialized():
        raise ValueError("this process trains with others already; trace a step in a process of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def traced(make: Callable[[], TrainingModule], batches: Sequence[Batch], *, trainer: Any, ranks: int) -> Traced:
    """A step of the module that `make` builds, when its optimisers have their moments already, on one rank's batches of real tensors.

    trainer: a Lightning Trainer for the CPU, never run: its strategy and its precision are used.
    """
    strategy = trainer.strategy
    with pretended(ranks):
        mesh = laid(strategy, ranks)
        layout, axes = laid_out(mesh)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, Tally(axes) as tally:
            module = make()
            whole = held(module.task.parameters())
            module.trainer = trainer
            strategy.connect(module)
            if mesh is not None:
                with _FirstShard(), warnings.catch_warnings(action="ignore"):
                    strategy.spread(module.task)
            module.configure_optimizers()
            module.begin()
            prime(module)
            packs = module.task.prepare([faked(batch, fake) for batch in batches], torch.device("cpu"))  # pyright: ignore[reportCallIssue]
            kept = [0]
            module.task.register_forward_hook(lambda *_: kept.append(tally.alive - before - held(gradients(module))))
            before = tally.alive
            tally.restart()
            with strategy.precision_plugin.train_step_context(), warnings.catch_warnings(action="ignore"):
                module.step(packs)
            return Traced(
                weights=held(module.task.parameters()),
                average=held(module.average.shadow.values()),
                moments=held(moments(module)),
                gradients=held(value for value in module.task.parameters() if value.requires_grad),
                kept=max(kept),
                largest=tally.largest,
                flops=tally.flops,
                attention=tally.attention,
                sent=dict(tally.sent),
                calls=dict(tally.calls),
                layout=layout,
                saved=size_of([*module.task.state_dict().values(), *module.average.shadow.values(), *moments(module)]),
                whole=whole,
                numbers=sum(value.numel() for value in module.task.parameters()),
            )


def laid(strategy: Any, ranks: int) -> DeviceMesh | None:
    if not isinstance(strategy, MeshStrategy):
        return None
    strategy.lay("cpu")
    return strategy.device_mesh


def laid_out(mesh: DeviceMesh | None) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """How many ranks each axis has and how far apart they are, and the axis of each process group, by the group's name."""
    names = (mesh.mesh_dim_names or ()) if mesh is not None else ()
    if mesh is None:
        return {}, {}
    sizes = [mesh.size(place) for place in range(len(names))]
    layout = {name: (size, prod(sizes[place + 1 :])) for place, (name, size) in enumerate(zip(names, sizes, strict=True))}
    return layout, {mesh.get_group(name).group_name: name for name in names}


class _FirstShard(TorchFunctionMode):
    """Cuts a weight for the first rank only: FSDP cuts each into all ranks' shards, which takes minutes for a thousand, and keeps its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.chunk:
            return func(*args, **(kwargs or {}))
        tensor, pieces, axis = args[0], args[1], (kwargs or {}).get("dim", 0)
        size = -(-tensor.shape[axis] // pieces)
        full = -(-tensor.shape[axis] // size)
        return (tensor.narrow(axis, 0, size),) * full + (tensor.narrow(axis, 0, 0),) * (pieces - full)


def prime(module: TrainingModule) -> None:
    """Make the optimisers' moments, as the first step of a run does."""
    for value in module.trained().values():
        value.grad = torch.zeros_like(value)
    for stepper in module.steppers:
        stepper.step()
        stepper.zero_grad(set_to_none=True)


def faked(value: Any, fake: FakeTensorMode) -> Any:
    """Shapes alone; where segments end stays known to the host."""
    if isinstance(value, Tensor):
        return fake.from_tensor(value)
    if isinstance(value, Segments):
        return replace(value, cu_seqlens=fake.from_tensor(value.cu_seqlens))
    if isinstance(value, Movable):
        return replace(value, **{part.name: faked(getattr(value, part.name), fake) for part in fields(value)})  # pyright: ignore[reportArgumentType]
    return value


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes that this rank holds of tensors, sharded or not."""
    local = [value.to_local() if isinstance(value, DTensor) else value for value in tensors]
    return sum(value.numel() * value.element_size() for value in local)


def gradients(module: TrainingModule) -> list[Tensor]:
    return [value.grad for value in module.task.parameters() if value.grad is not None]


def moments(module: TrainingModule) -> list[Tensor]:
    """What the optimisers remember of each parameter."""
    return [item for stepper in module.steppers for slots in stepper.state.values() for item in slots.values() if isinstance(item, Tensor)]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, all ranks' shards together."""
    return sum(value.numel() * value.element_size() for value in tensors)
