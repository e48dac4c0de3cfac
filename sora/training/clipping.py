"""The norm of all gradients together, and scaling them, whatever mesh each lies in shards on."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from sora.training import ranks


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all of them, the same on every rank; every rank must call it. Not finite if any number is not."""
    if not any(isinstance(value, DTensor) for value in gradients):
        return torch.nn.utils.get_total_norm(gradients, foreach=True)
    # What several ranks hold counts once for each, as a part of one: so a single sum over all ranks does for any mixture of meshes.
    norms = torch.stack(torch._foreach_norm(local(gradients))).double()
    parts = torch.tensor([distinct(value) for value in gradients], dtype=torch.float64, device=norms.device)
    world = torch.distributed.get_world_size()
    return ranks.summed((norms.square() * parts).sum() / world).sqrt().float()


def scale(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply them in place."""
    torch._foreach_mul_(local(gradients), factor)


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this rank holds of each, finished sums."""
    return [_finished(value).to_local() if isinstance(value, DTensor) else value for value in tensors]


def _finished(value: DTensor) -> DTensor:
    assert not any(placement.is_partial() for placement in value.placements), f"a gradient is a sum not yet taken: {value.placements}"
    return value


def distinct(value: Tensor) -> int:
    """How many ranks hold different parts of it."""
    if not isinstance(value, DTensor):
        return 1
    sizes = zip(value.device_mesh.shape, value.placements, strict=True)
    return prod(size for size, placement in sizes if not isinstance(placement, Replicate))
