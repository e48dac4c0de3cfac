"""Collectives over all ranks. With one process they are all the identity and cost nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mine() -> int:
    """The rank of this process, from its launcher's variables, so it is known before the ranks can communicate."""
    return getattr(rank_zero_only, "rank", 0) or 0


def first() -> bool:
    return mine() == 0


def say(line: str) -> None:
    """Print a line on the first rank only."""
    if first():
        print(line)


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks; every rank must call this, in the same order."""
    if several():
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """Every rank's tensor, by rank; all must have one shape and lie on the device of the process group."""
    if not several():
        return [values]
    everyone = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, values)
    return everyone


def together() -> None:
    """Wait until every rank has called this."""
    if several():
        dist.barrier()


def highest(value: int, device: torch.device) -> int:
    """The highest of all ranks' numbers; every rank must call this."""
    return int(torch.stack(gathered(torch.tensor(value, device=device))).max())


def joined(values: Sequence[int], device: torch.device) -> list[list[int]]:
    """Every rank's integers (int64), by rank; ranks may have different numbers of them. Every rank must call this."""
    if not several():
        return [list(values)]
    room = highest(len(values), device)
    everyone = gathered(torch.tensor([len(values), *values, *[0] * (room - len(values))], dtype=torch.int64, device=device))
    return [each[1 : 1 + int(each[0])].tolist() for each in everyone]


def require_same(facts: Mapping[str, str], device: torch.device) -> None:
    """Raise ValueError on every rank, naming the differences, unless all ranks have the same texts. Every rank must call this."""
    if not several():
        return
    digests = [list(hashlib.sha256(text.encode()).digest()) for text in facts.values()]
    everyone = gathered(torch.tensor(digests, dtype=torch.uint8, device=device))
    differing = {
        name: [rank for rank, each in enumerate(everyone) if not torch.equal(each[place], everyone[0][place])]
        for place, name in enumerate(facts)
    }
    told = "; ".join(f"{name} on rank {', '.join(map(str, found))}" for name, found in differing.items() if found)
    if told:
        raise ValueError(
            f"the ranks would not make the same run: other than on rank 0 are {told}. Start all of them alike, from one checkout"
        )


def whole(value: Tensor) -> Tensor:
    """Gather a sharded tensor; others are returned unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value
