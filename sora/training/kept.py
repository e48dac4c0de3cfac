"""How much memory a forward pass keeps for its backward: counted, so that it is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Made(TorchDispatchMode):
    """The storages that operators return, by where they lie, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                self.made[reference.cdata] = (reference, storage.nbytes())
        return out


def kept_bytes(forward: Callable[[], Tensor], *, besides: Iterable[Tensor]) -> int:
    """Bytes that still lie in memory after `forward`, as long as what it returned lives: its result and what the backward will want.

    besides: weights and inputs, which are there anyway. Whoever keeps them counts: autograd, or checkpointing in its own cache.
    """
    known = {StorageWeakRef(value.untyped_storage()).cdata for value in besides}
    with torch.enable_grad(), _Made() as mode:
        out = forward()
    kept = sum(size for place, (reference, size) in mode.made.items() if place not in known and not reference.expired())
    del out
    return kept
