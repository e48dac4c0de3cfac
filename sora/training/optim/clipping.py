"""Gradient norm over all parameters, and gradient scaling, on any mixture of sharding meshes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from sora.system import distributed as ranks
from sora.system.torch_private import foreach_mul_, foreach_norm


def each_norm(gradients: Sequence[Tensor]) -> Float[Tensor, "n"]:
    """The 2-norm of this rank's part of each gradient."""
    return torch.stack(foreach_norm(local(gradients))) if gradients else torch.zeros(0)


def total_norm(gradients: Sequence[Tensor], each: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The 2-norm of all gradients together, the same on every rank; every rank must call this. Not finite if any number is not. each:
    `each_norm`."""
    if not any(isinstance(value, DTensor) for value in gradients):
        return torch.linalg.vector_norm(each)
    # Divide each square by its number of copies, so that a single sum over all ranks is right for any mixture of meshes.
    parts = torch.tensor([distinct(value) for value in gradients], dtype=torch.float64, device=each.device)
    world = torch.distributed.get_world_size()
    return ranks.summed((each.double().square() * parts).sum() / world).sqrt().float()


def scale(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply the gradients by `factor` in place."""
    foreach_mul_(local(gradients), factor)


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's part of each tensor, with pending sums computed."""
    return [_finished(value).to_local() if isinstance(value, DTensor) else value for value in tensors]


def _finished(value: DTensor) -> DTensor:
    assert not any(placement.is_partial() for placement in value.placements), f"a gradient is a sum not yet taken: {value.placements}"
    return value


def distinct(value: Tensor) -> int:
    """The number of ranks that hold different parts of a tensor."""
    if not isinstance(value, DTensor):
        return 1
    sizes = zip(value.device_mesh.shape, value.placements, strict=True)
    return prod(size for size, placement in sizes if not isinstance(placement, Replicate))
