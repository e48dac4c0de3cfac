"""A training step of one rank of any mesh, without its memory, its devices or the other ranks: what it keeps, multiplies and sends.

The task, the strategy, the optimiser and the average are those that train; only their numbers are missing (torch's FakeTensor), and the
other ranks are a process group that answers at once (torch's "fake" backend). Every tensor lies on the CPU here, and is as large on a GPU.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sora.cost.tally import CostCounter
from sora.parallel.mesh import MeshStrategy, ordered, seat
from sora.parallel.summing import waiting
from sora.system.torch_private import FakeStore, FakeTensorMode, clear_sharding_prop_cache, let_collectives_be_fake
from sora.tokens import Movable, Segments
from sora.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Of one rank and one optimiser step; bytes, unless said otherwise.

    weights, average, moments: what lies there always. gradients: when all are there. kept: by a forward pass for its backward, the most of
    the packs. peaks: of everything, the most in any forward, in any backward, and in the update. flops, attention: executed, what is
    computed again included. sent: by axis of the mesh. layout: of each such axis, how many ranks it has, and how far apart they are
    numbered. saved: a checkpoint's, all ranks together. whole: the weights, unsharded, as every process makes them. numbers: of the
    weights. readers: ranks, or groups of them, with packs of their own.
    """

    weights: int
    average: int
    moments: int
    gradients: int
    kept: int
    peaks: tuple[int, int, int]
    flops: int
    attention: int
    sent: Mapping[str, int]
    layout: Mapping[str, tuple[int, int]]
    saved: int
    whole: int
    numbers: int
    readers: int

    @property
    def largest(self) -> int:
        """Bytes of everything, at any time."""
        return max(self.peaks)

    def summing(self, packs: int, trainer: Any) -> Traced:
        """Of a step of so many packs, whose gradients wait for one another where they are summed in order."""
        beside = waiting(-(-packs // self.readers)) * self.gradients if ordered(trainer) else 0
        first, second, third = self.peaks
        return replace(self, peaks=(first + beside, second + beside, third + beside))

    def deeper(self, other: Traced, times: int) -> Traced:
        """Of a network that has so many times more blocks than this one has, as `other` has them once."""

        def more(here: Any, there: Any) -> Any:
            if isinstance(here, Mapping):
                return {axis: more(here[axis], there[axis]) for axis in here}
            if isinstance(here, tuple):
                return tuple(map(more, here, there))
            return here + times * (there - here)

        alike = {"layout", "readers"}
        named = [part.name for part in fields(self) if part.name not in alike]
        return replace(self, **{name: more(getattr(self, name), getattr(other, name)) for name in named})


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """Be the first of so many ranks, alone.

    Raises:
        ValueError: this process is one of several already.
    """
    if dist.is_initialized():
        raise ValueError("this process trains with others already; trace a step in a process of its own")
    let_collectives_be_fake()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # Torch keeps results by the look of their mesh, with that mesh and its first rank's place: ranks forked later would take it.
        clear_sharding_prop_cache()


def traced(make: Callable[[], TrainingModule], batches: Sequence[Movable], *, trainer: Any, ranks: int, gpu: bool) -> Traced:
    """A step of the module that `make` builds, when its optimisers have their moments already, on one rank's batches of real tensors.

    trainer: a Lightning Trainer for the CPU, never run: its strategy and its precision are used. gpu: mix precisions as a GPU does.
    """
    strategy = trainer.strategy
    with pretended(ranks), warnings.catch_warnings(action="ignore"):
        if isinstance(strategy, MeshStrategy):
            strategy.lay("cpu")
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, CostCounter() as tally:
            module = make()
            whole = held(module.task.parameters())
            attach(module, trainer)
            packs = module.task.prepare([faked(batch, fake) for batch in batches], torch.device("cpu"))  # pyright: ignore[reportCallIssue]
            kept, peaks = [0], ([0], [0], [0])

            def forwarded(*_: Any) -> None:
                peaks[0].append(tally.since())
                kept.append(tally.alive - before - held(gradients(module)))

            module.task.register_forward_pre_hook(lambda *_: peaks[1].append(tally.since()))
            module.task.register_forward_hook(forwarded)
            module.steppers[0].register_step_pre_hook(lambda *_: peaks[1].append(tally.since()))
            gc.freeze()  # what is there already is not looked at again and again
            tally.restart()
            before = tally.alive
            with strategy.precision_plugin.train_step_context(), gpu_casts() if gpu else nullcontext():
                module.step(packs)
            gc.unfreeze()
            layout, sent = named(strategy, tally, module)
            return Traced(
                weights=held(module.task.parameters()),
                average=held(averages(module)),
                moments=held(moments(module)),
                gradients=held(module.trained().values()),
                kept=max(kept),
                peaks=(max(peaks[0]), max(peaks[1]), tally.largest),
                flops=tally.flops,
                attention=tally.attention,
                sent=sent,
                layout=layout,
                saved=size_of([*module.task.state_dict().values(), *averages(module), *moments(module)]),
                whole=whole,
                numbers=sum(value.numel() for value in module.task.parameters()),
                readers=seat(trainer).readers,
            )


def attach(module: TrainingModule, trainer: Any) -> None:
    """What Lightning does before the first step, and what the first step makes: the optimisers' moments."""
    strategy = trainer.strategy
    module.trainer = trainer
    strategy.connect(module)
    if isinstance(strategy, MeshStrategy):
        # torch's DDP keeps its buckets where fake tensors do not reach; gradients are views of them, and are summed once a step. What ranks
        # send one another in order is as much, and in chunks
        strategy._replicated = strategy._alike = strategy.sum_up = lambda _: None
        with _FirstShard():
            strategy.spread(module.task)
    module.configure_optimizers()
    module.begin()
    for value in module.trained().values():
        value.grad = torch.zeros_like(value)
    for stepper in module.steppers:
        stepper.step()
        stepper.zero_grad(set_to_none=True)


def named(strategy: Any, tally: CostCounter, module: TrainingModule) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """The axes of the mesh on which something is sent, with their ranks, and how much is sent there."""
    if not isinstance(strategy, MeshStrategy):
        return {}, {}
    sizes = strategy.sizes.named
    known, sent = {}, dict(tally.sent)
    for first in range(len(sizes)):
        for last in range(first + 1, len(sizes) + 1):
            several = [axis for axis, size in sizes[first:last] if size > 1]
            place = prod(size for _, size in sizes[first:last]), prod(size for _, size in sizes[last:])
            if several:
                known[place] = " x ".join(several)
    told = dict[str, tuple[tuple[int, int], int]]()
    for (ranks, apart, of_shards), amount in sent.items():
        axis = known.get((ranks, apart), f"{ranks} ranks {apart} apart")
        # weights in pieces over context ranks alone: gathered behind what is computed, and not inside of layers as their tokens are
        axis = "shard x context" if of_shards and axis == "context" else axis
        if amount:
            told[axis] = (ranks, apart), amount + (told[axis][1] if axis in told else 0)
    if not strategy.sharded and strategy.sizes.tensor == 1 and (ranks := strategy.sizes.ranks) > 1:
        # Once a step and behind what is computed, so apart from what context ranks send inside layers, though these may be the same ranks.
        axis = "replicate x context" if strategy.sizes.context > 1 else "replicate"
        told[axis] = (ranks, 1), 2 * held(module.trained().values()) * (ranks - 1) // ranks
    return {name: place for name, (place, _) in told.items()}, {name: amount for name, (_, amount) in told.items()}


@contextmanager
def gpu_casts() -> Iterator[None]:
    """What autocast computes in float32 on a GPU, and leaves in half precision on a CPU (torch's docs, "Automatic Mixed Precision").

    The functions themselves are changed: a mode of torch's would not be there in a backward, where blocks are computed again.
    """
    plain = {(home, name): getattr(home, name) for home, names in _WIDE for name in names}

    def widened(function: Callable[..., Any]) -> Callable[..., Any]:
        def wide(*args: Any, **settings: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                args = tuple(value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in args)
            return function(*args, **settings)

        return wide

    try:
        for (home, name), function in plain.items():
            setattr(home, name, widened(function))
        yield
    finally:
        for (home, name), function in plain.items():
            setattr(home, name, function)


_WIDE = (
    (F, ("layer_norm", "rms_norm", "group_norm", "softplus", "mse_loss")),
    (torch, ("layer_norm", "rms_norm", "group_norm", "native_layer_norm", "rsqrt", "pow", "exp", "log", "reciprocal")),
)


class _FirstShard(TorchFunctionMode):
    """Cuts a weight for the first rank only: FSDP cuts each into all ranks' shards, minutes of work for a thousand, and keeps its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.chunk:
            return func(*args, **(kwargs or {}))
        tensor, pieces, axis = args[0], args[1], (kwargs or {}).get("dim", 0)
        size = -(-tensor.shape[axis] // pieces)
        full = -(-tensor.shape[axis] // size)
        return (tensor.narrow(axis, 0, size),) * full + (tensor.narrow(axis, 0, 0),) * (pieces - full)


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


def averages(module: TrainingModule) -> list[Tensor]:
    """Of every profile that is kept: `ema=post_hoc` has several."""
    return [value for kept in module.average.kinds().values() for value in kept.values()]


def moments(module: TrainingModule) -> list[Tensor]:
    """What the optimisers remember of each parameter."""
    return [item for stepper in module.steppers for slots in stepper.state.values() for item in slots.values() if isinstance(item, Tensor)]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, all ranks' shards together."""
    return sum(value.numel() * value.element_size() for value in tensors)
