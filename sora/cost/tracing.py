"""Traces a training step of one rank of any mesh, without its memory, devices or other ranks: what it keeps, computes and sends.

The task, strategy, optimiser and average are those of training, on tensors without numbers (torch's FakeTensor). The other ranks are a
process group that answers at once (torch's "fake" backend). All tensors are on the CPU here, and are equally large on a GPU.
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
    """The cost of one optimiser step on one rank; in bytes unless stated otherwise.

    weights, average, moments: always allocated. gradients: when all exist. kept: activations that a forward pass saves for its backward,
    the maximum over packs. peaks: of all memory in any forward, in any backward, and in the update. flops, attention: executed FLOPs, with
    recomputation. sent: by axis of the mesh. layout: for each such axis, the size of a group and the distance of its ranks. saved: a
    checkpoint, all ranks together. whole: the unsharded weights, as every process creates them. numbers: of the weights. readers: groups of
    ranks with their own packs.
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
        """The peak of all memory."""
        return max(self.peaks)

    def summing(self, packs: int, trainer: Any) -> Traced:
        """The cost of a step of `packs` packs, if ordered gradient sums keep several sets of gradients."""
        beside = waiting(-(-packs // self.readers)) * self.gradients if ordered(trainer) else 0
        first, second, third = self.peaks
        return replace(self, peaks=(first + beside, second + beside, third + beside))

    def deeper(self, other: Traced, times: int) -> Traced:
        """The cost of a deeper network. other: with some blocks more than this one; times: how often these are added."""

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
    """A context in which this process is the first of `ranks` fake ranks.

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
        # torch caches results by meshes that compare equal, with the first rank's coordinates: ranks forked later would get these.
        clear_sharding_prop_cache()


def traced(make: Callable[[], TrainingModule], batches: Sequence[Movable], *, trainer: Any, ranks: int, gpu: bool) -> Traced:
    """The cost of a step of the module that `make` builds, after its optimisers have created their states, on one rank's batches of real
    tensors.

    trainer: a Lightning Trainer for the CPU that is never run; its strategy and precision are used. gpu: cast types as autocast does on a
    GPU.
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
            gc.freeze()  # the collector skips objects that exist already
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
    """Do what Lightning does before the first step, and create the optimisers' states, as the first step does."""
    strategy = trainer.strategy
    module.trainer = trainer
    strategy.connect(module)
    if isinstance(strategy, MeshStrategy):
        # torch's DDP has buckets that fake tensors do not reach; gradients are views of them, and are summed once a step. Ranks that sum in
        # order send as much, in chunks.
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
    """The axes of the mesh with messages: their (group size, distance of ranks), and the bytes sent on each."""
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
        # weights sharded over context ranks only: gathered while others compute, unlike the messages inside of layers
        axis = "shard x context" if of_shards and axis == "context" else axis
        if amount:
            told[axis] = (ranks, apart), amount + (told[axis][1] if axis in told else 0)
    if not strategy.sharded and strategy.sizes.tensor == 1 and (ranks := strategy.sizes.ranks) > 1:
        # Once a step and overlapped, so separate from messages of context ranks inside of layers, though these may be the same ranks.
        axis = "replicate x context" if strategy.sizes.context > 1 else "replicate"
        told[axis] = (ranks, 1), 2 * held(module.trained().values()) * (ranks - 1) // ranks
    return {name: place for name, (place, _) in told.items()}, {name: amount for name, (_, amount) in told.items()}


@contextmanager
def gpu_casts() -> Iterator[None]:
    """A context in which functions that autocast computes in float32 on a GPU but not on a CPU do so (torch's docs, "Automatic Mixed
    Precision").

    The functions themselves are replaced, because a torch mode is not active in a backward, where blocks are recomputed.
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
    """Cuts only the first rank's shard of a weight: FSDP cuts those of all ranks and keeps one, which takes minutes for a thousand
    ranks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.chunk:
            return func(*args, **(kwargs or {}))
        tensor, pieces, axis = args[0], args[1], (kwargs or {}).get("dim", 0)
        size = -(-tensor.shape[axis] // pieces)
        full = -(-tensor.shape[axis] // size)
        return (tensor.narrow(axis, 0, size),) * full + (tensor.narrow(axis, 0, 0),) * (pieces - full)


def faked(value: Any, fake: FakeTensorMode) -> Any:
    """The value with fake tensors; segments' ends stay known to the host."""
    if isinstance(value, Tensor):
        return fake.from_tensor(value)
    if isinstance(value, Segments):
        return replace(value, cu_seqlens=fake.from_tensor(value.cu_seqlens))
    if isinstance(value, Movable):
        return replace(value, **{part.name: faked(getattr(value, part.name), fake) for part in fields(value)})  # pyright: ignore[reportArgumentType]
    return value


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's part of tensors, sharded or not."""
    local = [value.to_local() if isinstance(value, DTensor) else value for value in tensors]
    return sum(value.numel() * value.element_size() for value in local)


def gradients(module: TrainingModule) -> list[Tensor]:
    return [value.grad for value in module.task.parameters() if value.grad is not None]


def averages(module: TrainingModule) -> list[Tensor]:
    """The averaged weights of all profiles; `ema=post_hoc` keeps several."""
    return [value for kept in module.average.kinds().values() for value in kept.values()]


def moments(module: TrainingModule) -> list[Tensor]:
    """The optimiser states of all parameters."""
    return [item for stepper in module.steppers for slots in stepper.state.values() for item in slots.values() if isinstance(item, Tensor)]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, all ranks' shards together."""
    return sum(value.numel() * value.element_size() for value in tensors)
