"""Counts the cost of a training step on one rank, operator by operator: bytes in memory, FLOPs, and bytes sent to other ranks.

It counts real and fake tensors (FakeTensorMode) in the same way, so that a prediction can be compared with a run.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from sora.dit.attention.op import is_attention
from sora.system.torch_private import (
    FakeTensor,
    ShardingPropagator,
    TorchDispatchMode,
    active_fake_mode,
    is_traceable_wrapper_subclass_type,
    item,
    resolve_process_group,
    unset_fake_temporarily,
)

_HELD = torch.UntypedStorage


class CostCounter(TorchDispatchMode):
    """Counts while its context is entered.

    alive, largest: bytes of tensors that were created since and still exist, now and at the peak. flops: of matrix products, convolutions
    and attention; `attention` is the last part of it. sent: bytes that this rank sends, by (ranks, distance of their numbers) of the
    process group and by whether they are sharded weights or their gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.largest = self.flops = self.attention = 0
        self._swept = math.inf  # no collection before `restart`
        self.sent: Counter[tuple[int, int, bool]] = Counter()
        self._sizes: dict[int, tuple[weakref.ref, int]] = {}
        self._fake: Any = None
        self._resize: Callable[..., Any] = _HELD.resize_
        self._propagate: Callable[..., Any] = ShardingPropagator._propagate_tensor_meta_non_cached
        self._asking = False

    def __enter__(self) -> CostCounter:
        self._fake = active_fake_mode()
        # FSDP frees a gathered weight by resizing its storage to 0, which is no operator. DTensor computes the shapes of whole tensors with
        # whole fake ones, in whatever mode is active.
        tally = self

        def asked(propagator: Any, *given: Any) -> Any:
            tally._asking = True
            try:
                return tally._propagate(propagator, *given)
            finally:
                tally._asking = False

        ShardingPropagator._propagate_tensor_meta_non_cached = asked

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            done = tally._resize(storage, size)
            if id(storage) in tally._sizes:
                tally._note(storage)
            return done

        _HELD.resize_ = resized  # pyright: ignore[reportAttributeAccessIssue]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _HELD.resize_ = self._resize  # pyright: ignore[reportAttributeAccessIssue]
        ShardingPropagator._propagate_tensor_meta_non_cached = self._propagate
        super().__exit__(*error)

    def restart(self) -> None:
        """Reset the counts of FLOPs, messages and the peak; bytes in memory stay counted."""
        gc.collect()
        self.largest = self._swept = self.alive
        self.flops = self.attention = 0
        self.sent.clear()

    def since(self) -> int:
        """The peak of bytes since the last call."""
        gc.collect()
        found, self.largest, self._swept = self.largest, self.alive, self.alive
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(_wraps, types)):
            return NotImplemented  # a sharded tensor; the operators on its shards are counted
        given = _tensors(args)
        if self._fake is not None and given and not any(isinstance(value, FakeTensor) for value in given):
            with unset_fake_temporarily():  # keep numbers that the host knows, such as segments' ends
                return func(*args, **(kwargs or {}))
        if self._fake is not None and func is item:
            return 0.0 if given[0].is_floating_point() else 0  # the step reads its loss and norm; these pass its checks
        out = func(*args, **(kwargs or {}))
        if self._asking or active_fake_mode() is not self._fake:
            return out  # DTensor computes shapes
        strangers = {id(storage) for value in given if id(storage := value.untyped_storage()) not in self._sizes}
        for value in _tensors(out):
            if id(storage := value.untyped_storage()) not in strangers:  # not a view of older memory
                self._note(storage)
        self._count(func, args, kwargs or {}, out)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            self._sizes[key] = (weakref.ref(storage, lambda _: self._gone(key)), size)
            self.alive += size
        elif known[1] != size:
            self._sizes[key] = (known[0], size)
            self.alive += size - known[1]
        if self.alive > self.largest:
            if self.alive > 1.05 * self._swept:
                gc.collect()  # autograd leaves reference cycles, which Python frees at an unknown time
                self._swept = self.alive
            self.largest = max(self.largest, self.alive)

    def _gone(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)[1]

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet = func.overloadpacket
        if packet in flop_registry:
            with unset_fake_temporarily():
                made = flop_registry[packet](*args, **kwargs, out_val=out)
            self.flops += made
            self.attention += made if is_attention(func) else 0
        elif func.namespace in ("c10d", "_c10d_functional"):
            self._send(packet.__name__, args, out)

    def _send(self, name: str, args: Any, out: Any) -> None:
        """Count the bytes of a ring, where each rank passes on what it has: the least that any algorithm sends for gathers and
        reductions."""
        group = next((found for value in args if (found := _group(value)) is not None), None)
        if group is None or group.size() < 2:
            return
        numbers = dist.get_process_group_ranks(group)
        size = max(value.numel() * value.element_size() for value in _tensors((args, out)))
        passes = 2 if "reduce" in name and "scatter" not in name else 1
        self.sent[len(numbers), numbers[1] - numbers[0], name in OF_SHARDS] += passes * size * (len(numbers) - 1) // len(numbers)


# FSDP's own collectives; those inside of layers are functional collectives with other names
OF_SHARDS = {"_allgather_base_", "_reduce_scatter_base_"}

_wraps = cache(is_traceable_wrapper_subclass_type)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, also in lists."""
    if isinstance(value, Tensor):
        return [value]
    return [found for item in value for found in _tensors(item)] if isinstance(value, tuple | list) else []


def _group(value: Any) -> Any:
    """The process group in an operator's argument, a script object or a name; None for other arguments."""
    try:
        if isinstance(value, torch.ScriptObject):
            return dist.ProcessGroup.unbox(value)
        return resolve_process_group(value) if isinstance(value, str) else None  # pyright: ignore[reportArgumentType]
    except (RuntimeError, TypeError):  # a reduce operation or an option
        return None
