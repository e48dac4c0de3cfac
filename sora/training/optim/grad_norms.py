"""How large the gradients of each part of a network are: for the log, before they are clipped."""

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
    """The part of a network that a parameter is of: dit.blocks.3 has `dit.blocks.3.mlp.up.weight`, and dit.embed `dit.embed.weight`."""
    pieces = name.split(".")
    number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
    return ".".join(pieces[: number + 1] if number is not None else pieces[:2])


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts of all names, in the order in which they first appear."""
    return list(_places(tuple(names))[0])


@lru_cache(maxsize=8)
def _places(names: tuple[str, ...]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The number of each part, and of the part of each name: those of a deep network are many, and stay as they are while it trains."""
    found = [part_of(name) for name in names]
    parts = {part: place for place, part in enumerate(dict.fromkeys(found))}
    return parts, {name: parts[part] for name, part in zip(names, found, strict=True)}


def norms(parameters: Mapping[str, nn.Parameter], each: Float[Tensor, "n"]) -> dict[str, float]:
    """The 2-norm of the gradients of each part, over all ranks; a part without gradients has 0. Every rank must call it.

    each: the norms of what this rank holds of the gradients that there are (`clipping.each_norm`). One sum over ranks of a number for each
    part. Shards add up; of copies, each rank counts its share, so that it is right for any mesh: the squares of a tensor that is on n ranks
    alike are divided by n.
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
