"""Tensors in pieces: which rank writes what of a checkpoint, and any part of a tensor out of the files of however many ranks wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from sora.training.tensorfile import NAMES

TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: its numbers, the index of its first one, and the shape of the whole."""

    values: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return tuple(self.values.shape) == self.shape


def boxes(tensor: DTensor) -> tuple[Placement, ...]:
    """Placements of a tensor in which a rank has one box of it: of stacked matrices that are each cut over an axis it has several."""
    cuts = Counter(one.dim for one in tensor.placements if isinstance(one, Shard | _StridedShard))
    # Where two axes cut one dimension, `fully_shard` marks by the same class which of them came first; a rank has one box then.
    return tuple(Shard(one.dim) if isinstance(one, _StridedShard) and cuts[one.dim] == 1 else one for one in tensor.placements)


def place(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape and offset of this rank's box of a sharded tensor, as `boxes` places it."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, boxes(tensor))
    return tuple(shape), tuple(offset)


def owned(tensors: Mapping[str, Tensor], *, rank: int, ranks: int) -> dict[str, Piece]:
    """What `rank` writes of tensors that every rank has, whole or sharded: every number is written by exactly one rank.

    Tensors that all hold alike are dealt out by size; the copies of a shard take turns, tensor by tensor. Every rank must call it.
    """
    plain = {name: value for name, value in tensors.items() if not isinstance(value, DTensor)}
    mine: dict[str, Piece] = {}
    loads = [0] * ranks
    for name in sorted(plain, key=lambda name: (-plain[name].numel() * plain[name].element_size(), name)):
        least = loads.index(min(loads))
        loads[least] += plain[name].numel() * plain[name].element_size() + 1
        if least == rank:
            shape = tuple(plain[name].shape)
            mine[name] = Piece(plain[name], (0,) * len(shape), shape)
    for number, (name, value) in enumerate(tensors.items()):
        if not isinstance(value, DTensor):
            continue
        local = value.redistribute(placements=boxes(value)).to_local()  # an exchange among tensor ranks, for stacked matrices alone
        if _writes(name, value, number):
            shape, offset = place(value)
            if prod(shape) or not value.numel():
                mine[name] = Piece(local, offset, tuple(value.shape))
    return mine


def _writes(name: str, value: DTensor, number: int) -> bool:
    """Whether this rank is the one, of all that hold this shard of tensor `number`, that writes it."""
    if any(isinstance(placement, Partial) for placement in value.placements):
        raise ValueError(f"{name} is a sum that has not been taken yet ({value.placements}); a checkpoint holds finished tensors")
    mesh, coordinate = value.device_mesh, value.device_mesh.get_coordinate()
    return coordinate is not None and all(
        index == number % mesh.size(axis)
        for axis, (index, placement) in enumerate(zip(coordinate, value.placements, strict=True))
        if isinstance(placement, Replicate)
    )


class Stored(Mapping[str, Tensor]):
    """The tensors of one kind in a checkpoint's files, read only when asked for.

    files: of this kind. boxes: by name, for tensors in pieces: the whole "shape", and under "offsets" where each file's piece begins.

    Raises:
        ValueError: a file cannot be read, or pieces are missing; the message names it.
    """

    def __init__(self, folder: Path, files: Sequence[str], boxes: Mapping[str, Mapping[str, Any]]) -> None:
        self._places: dict[str, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, torch.dtype] = {}
        for file in files:
            handle = _opened(folder / file)
            for name in handle.keys():  # noqa: SIM118  not a mapping
                said = handle.get_slice(name)
                box = boxes.get(name)
                shape = tuple(said.get_shape())
                offset = tuple(box["offsets"][file]) if box else (0,) * len(shape)
                self._shapes[name], self._types[name] = tuple(box["shape"]) if box else shape, TYPES[said.get_dtype()]
                self._places.setdefault(name, []).append((handle, offset, shape))
        for name, found in self._places.items():
            if sum(prod(shape) for _, _, shape in found) != prod(self._shapes[name]):
                raise ValueError(f"{folder} is damaged: the pieces of {name} do not make {self._shapes[name]}; use another checkpoint")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        return self.part(name, (0,) * len(self._shapes[name]), self._shapes[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._types[name]

    def part(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The box of a tensor that begins at `offset`, on the host; only what lies in it is read."""
        found = self._places[name]
        if len(found) == 1 and found[0][2] == tuple(shape):
            return found[0][0].get_tensor(name)
        out = torch.empty(tuple(shape), dtype=self._types[name])
        for handle, begins, size in found:
            low = [max(a, b) for a, b in zip(offset, begins, strict=True)]
            high = [min(a + m, b + n) for a, m, b, n in zip(offset, shape, begins, size, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begins, strict=True))
                here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
                out[here] = handle.get_slice(name)[there]
        return out


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
