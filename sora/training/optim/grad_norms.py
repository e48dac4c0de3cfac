"""The gradient norm of each part of a network, before clipping, for the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from sora.system import distributed as ranks
from sora.training.optim import clipping


def part_of(name: str) -> str:
    """The part of a network that a parameter belongs to: `dit.blocks.3.mlp.up.weight` to dit.blocks.3, `dit.embed.weight` to dit.embed."""
    pieces = name.split(".")
    number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
    return ".".join(pieces[: number + 1] if number is not None else pieces[:2])


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts of all names, in the order in which they first appear."""
    return list(_places(tuple(names))[0])


@lru_cache(maxsize=8)
def _places(names: tuple[str, ...]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The index of each part, and for each name the index of its part. Cached, because a deep network has many names."""
    found = [part_of(name) for name in names]
    parts = {part: place for place, part in enumerate(dict.fromkeys(found))}
    return parts, {name: parts[part] for name, part in zip(names, found, strict=True)}


def norms(parameters: Mapping[str, nn.Parameter], each: Float[Tensor, "n"]) -> dict[str, float]:
    """The 2-norm of the gradients of each part, over all ranks; 0 for a part without gradients. Every rank must call this.

    each: the norms of this rank's part of the existing gradients (`clipping.each_norm`). One sum over ranks is enough, with a number for
    each part. Squares of shards add up, and squares of a tensor with n copies are divided by n, so the result is right for any mesh.
    """
    places, of = _places(tuple(parameters))
    gradients = [(of[name], value.grad) for name, value in parameters.items() if value.grad is not None]
    held = dist.get_world_size() if ranks.several() else 1
    squares = [0.0] * len(places)
    for (place, gradient), norm in zip(gradients, each.double().tolist(), strict=True):
        squares[place] += norm * norm * (clipping.distinct(gradient) / held)
    if held > 1:
        squares = ranks.summed(torch.tensor(squares, dtype=torch.float64, device=next(iter(parameters.values())).device)).tolist()
    return {part: math.sqrt(square) for part, square in zip(places, squares, strict=True)}
