"""The memory that a forward pass saves for its backward, and the peak memory of a step; counted, so it is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sora.system.torch_private import TorchDispatchMode, tree_leaves


class _Made(TorchDispatchMode):
    """The storages that operators return, by address, without keeping them alive. largest: the most bytes of all of them at any time."""

    def __init__(self, besides: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {StorageWeakRef(value.untyped_storage()).cdata for value in besides}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.known:
                    self.made[reference.cdata] = (reference, storage.nbytes())
        self.largest = max(self.largest, self.alive())
        return out

    def alive(self) -> int:
        self.made = {place: pair for place, pair in self.made.items() if not pair[0].expired()}
        return sum(size for _, size in self.made.values())


def kept_bytes(forward: Callable[[], Tensor], *, besides: Iterable[Tensor]) -> int:
    """Bytes that remain allocated after `forward` while its result lives: the result and the activations saved for the backward.

    besides: weights and inputs, which are not counted. Activations saved by autograd and by checkpointing both count.
    """
    with torch.enable_grad(), _Made(besides) as mode:
        out = forward()
    kept = mode.alive()
    del out
    return kept


def peak_bytes(step: Callable[[], object], *, besides: Iterable[Tensor]) -> int:
    """The peak of allocated bytes during `step`, measured between operators; temporary memory inside an operator is not seen."""
    with torch.enable_grad(), _Made(besides) as mode:
        step()
    return mode.largest
