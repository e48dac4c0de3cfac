"""What a piece of training does to one rank, operator by operator: bytes that lie in memory, products, and bytes sent to other ranks.

It counts real tensors and fake ones (FakeTensorMode) alike, so that a prediction and a run can be compared.
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
    """Counts while it is entered.

    alive, largest: bytes of what was made since and still lives, now and at most. flops: of matrix products, convolutions and attention, of
    which `attention` are attention's. sent: bytes that this rank sends, by the process groups' (ranks, how far apart they are numbered) and
    by whether they are weights in shards, or gradients of these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.largest = self.flops = self.attention = 0
        self._swept = math.inf  # nothing is swept before `restart`
        self.sent: Counter[tuple[int, int, bool]] = Counter()
        self._sizes: dict[int, tuple[weakref.ref, int]] = {}
        self._fake: Any = None
        self._resize: Callable[..., Any] = _HELD.resize_
        self._propagate: Callable[..., Any] = ShardingPropagator._propagate_tensor_meta_non_cached
        self._asking = False

    def __enter__(self) -> CostCounter:
        self._fake = active_fake_mode()
        # FSDP frees what it gathered by making its storage empty, which is no operator; and DTensor asks for the shapes that whole tensors
        # would have with whole fake ones, in whatever mode there is.
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
        """Count operations, messages and the most bytes from here on; what lies in memory stays counted."""
        gc.collect()
        self.largest = self._swept = self.alive
        self.flops = self.attention = 0
        self.sent.clear()

    def since(self) -> int:
        """The most bytes since the last time, and from here on anew."""
        gc.collect()
        found, self.largest, self._swept = self.largest, self.alive, self.alive
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(_wraps, types)):
            return NotImplemented  # a sharded tensor: what it does with its shards comes by here
        given = _tensors(args)
        if self._fake is not None and given and not any(isinstance(value, FakeTensor) for value in given):
            with unset_fake_temporarily():  # numbers that the host knows, such as where segments end, stay known
                return func(*args, **(kwargs or {}))
        if self._fake is not None and func is item:
            return 0.0 if given[0].is_floating_point() else 0  # a step asks for its loss and norm; with these it is sound
        out = func(*args, **(kwargs or {}))
        if self._asking or active_fake_mode() is not self._fake:
            return out  # DTensor asks for shapes
        strangers = {id(storage) for value in given if id(storage := value.untyped_storage()) not in self._sizes}
        for value in _tensors(out):
            if id(storage := value.untyped_storage()) not in strangers:  # a view of what was there before is nothing new
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
                gc.collect()  # autograd leaves circles of references, which Python finds at times of its own
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
        """As a ring does it, each rank passing on what it has: the least that any algorithm sends for gathers and reductions."""
        group = next((found for value in args if (found := _group(value)) is not None), None)
        if group is None or group.size() < 2:
            return
        numbers = dist.get_process_group_ranks(group)
        size = max(value.numel() * value.element_size() for value in _tensors((args, out)))
        passes = 2 if "reduce" in name and "scatter" not in name else 1
        self.sent[len(numbers), numbers[1] - numbers[0], name in OF_SHARDS] += passes * size * (len(numbers) - 1) // len(numbers)


# FSDP's own; what layers gather and reduce goes by functional collectives of other names
OF_SHARDS = {"_allgather_base_", "_reduce_scatter_base_"}

_wraps = cache(is_traceable_wrapper_subclass_type)


def _tensors(value: Any) -> list[Tensor]:
    """Those in an operator's arguments or results: one, or lists of them at most."""
    if isinstance(value, Tensor):
        return [value]
    return [found for item in value for found in _tensors(item)] if isinstance(value, tuple | list) else []


def _group(value: Any) -> Any:
    """The process group among an operator's arguments: as a script object, or by name; None for other arguments."""
    try:
        if isinstance(value, torch.ScriptObject):
            return dist.ProcessGroup.unbox(value)
        return resolve_process_group(value) if isinstance(value, str) else None  # pyright: ignore[reportArgumentType]
    except (RuntimeError, TypeError):  # an operation or an option
        return None
