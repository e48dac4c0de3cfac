"""Parts of tensors: which rank writes which part to a checkpoint, and reading any part back from the files of any number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from sora.gate.tensors import Held, header
from sora.runs.tensorfile import NAMES
from sora.system.torch_private import StridedShard, compute_local_shape_and_global_offset

TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class TensorShard:
    """A box of a tensor: its numbers, the index of the first one in the tensor, and the shape of the whole tensor."""

    values: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def box(self) -> tuple[tuple[int, ...], str, tuple[int, ...], tuple[int, ...]]:
        """The shape and dtype of the whole tensor, and the offset and size of this box in it."""
        return self.shape, NAMES[self.values.dtype], self.offset, tuple(self.values.shape)


class Lying(NamedTuple):
    """The position of a box: its file, the index of its first number in the whole tensor, and its size."""

    file: str
    offset: tuple[int, ...]
    size: tuple[int, ...]


class TensorLayout(NamedTuple):
    """A tensor's shape and dtype, and the boxes that make it up."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Lying, ...]


def boxes(tensor: DTensor) -> tuple[Placement, ...]:
    """Placements under which each rank holds one box: of a stacked matrix whose parts are each cut, it holds several."""
    cuts = Counter(one.dim for one in tensor.placements if isinstance(one, Shard | StridedShard))
    # If two axes cut the same dimension, `fully_shard` marks the order of the cuts by the same class; a rank then holds one box.
    return tuple(Shard(one.dim) if isinstance(one, StridedShard) and cuts[one.dim] == 1 else one for one in tensor.placements)


def place(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape and offset of this rank's box of a sharded tensor, under the placements of `boxes`."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, boxes(tensor))
    return tuple(shape), tuple(offset)


def owned(tensors: Mapping[str, Tensor], *, rank: int, ranks: int) -> dict[str, TensorShard]:
    """The parts of tensors that `rank` writes, so that exactly one rank writes each number. The tensors are whole or sharded.

    Tensors that are whole on all ranks are dealt out by size; ranks with copies of the same shards take turns, tensor by tensor. Every rank
    must call this.
    """
    plain = {name: value for name, value in tensors.items() if not isinstance(value, DTensor)}
    mine: dict[str, TensorShard] = {}
    loads = [0] * ranks
    for name in sorted(plain, key=lambda name: (-plain[name].numel() * plain[name].element_size(), name)):
        least = loads.index(min(loads))
        loads[least] += plain[name].numel() * plain[name].element_size() + 1
        if least == rank:
            shape = tuple(plain[name].shape)
            mine[name] = TensorShard(plain[name], (0,) * len(shape), shape)
    for number, (name, value) in enumerate(tensors.items()):
        if not isinstance(value, DTensor):
            continue
        local = value.redistribute(placements=boxes(value)).to_local()  # tensor ranks communicate, for stacked matrices only
        if _writes(name, value, number):
            shape, offset = place(value)
            if prod(shape) or not value.numel():
                mine[name] = TensorShard(local, offset, tuple(value.shape))
    return mine


def _writes(name: str, value: DTensor, number: int) -> bool:
    """Whether this rank writes its shard of tensor `number`; only one of the ranks that hold a copy of it does."""
    if any(isinstance(placement, Partial) for placement in value.placements):
        raise ValueError(f"{name} is a sum that has not been taken yet ({value.placements}); a checkpoint holds finished tensors")
    mesh, coordinate = value.device_mesh, value.device_mesh.get_coordinate()
    return coordinate is not None and all(
        index == number % mesh.size(axis)
        for axis, (index, placement) in enumerate(zip(coordinate, value.placements, strict=True))
        if isinstance(placement, Replicate)
    )


def scanned(folder: Path, files: Sequence[str], boxes: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorLayout]:
    """The layouts of the tensors in some files, by name, from the files' own headers.

    boxes: for tensors in pieces, by name: "shape" of the whole, and "offsets", by file, of each piece's first number.
    """
    found: dict[str, TensorLayout] = {}
    for file in files:
        for name, said in header(folder / file, within=folder).tensors.items():
            size, box = said.shape, boxes.get(name)
            if said.dtype not in TYPES:
                raise ValueError(f"{folder / file}: {name} is {said.dtype}, which a checkpoint does not hold; use another checkpoint")
            if box and file not in box["offsets"]:
                raise ValueError(f"{folder / file} is damaged: nothing says where its piece of {name} lies; use another checkpoint")
            shape, offset = (tuple(box["shape"]), tuple(box["offsets"][file])) if box else (size, (0,) * len(size))
            before = found[name].pieces if name in found else ()
            found[name] = TensorLayout(shape, TYPES[said.dtype], (*before, Lying(file, offset, size)))
    return found


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint's files, each read when it is first used; files without numbers that are needed are never opened.

    Raises:
        ValueError: a file cannot be read or holds something else, or pieces are missing; the message names it.
    """

    def __init__(self, folder: Path, layouts: Mapping[str, TensorLayout]) -> None:
        self._folder, self._layouts = folder, dict(layouts)
        self._handles: dict[str, tuple[Any, Mapping[str, Held]]] = {}
        self._touched: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[Lying]] = {}
        right: set[int] = set()  # checked once per layout: tensors share layouts, and a layout may have thousands of pieces
        for name, layout in self._layouts.items():
            if id(layout) not in right and sum(prod(piece.size) for piece in layout.pieces) != prod(layout.shape):
                raise ValueError(f"{folder} is damaged: the pieces of {name} do not make {layout.shape}; use another checkpoint")
            right.add(id(layout))

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts  # the inherited method reads the tensor

    def __getitem__(self, name: str) -> Tensor:
        shape = self._layouts[name].shape
        return self.part(name, (0,) * len(shape), shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._layouts[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._layouts[name].dtype

    def part(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The box of a tensor at `offset` with shape `shape`, on the host; no other numbers are read."""
        layout = self._layouts[name]
        if len(layout.pieces) == 1 and layout.shape == tuple(shape):
            return self._handle(layout.pieces[0], name).get_tensor(name)
        out = torch.empty(tuple(shape), dtype=layout.dtype)
        for piece in self._touching(layout, tuple(offset), tuple(shape)):
            there, here = [], []
            for a, m, b, n in zip(offset, shape, piece.offset, piece.size, strict=True):
                low, high = max(a, b), min(a + m, b + n)
                there.append(slice(low - b, high - b))
                here.append(slice(low - a, high - a))
            out[tuple(here)] = self._handle(piece, name).get_slice(name)[tuple(there)]
        return out

    def _touching(self, layout: TensorLayout, offset: tuple[int, ...], shape: tuple[int, ...]) -> list[Lying]:
        """The pieces of a layout that overlap a box. Cached, because many tensors have one layout and a rank reads the same box of each."""
        key = id(layout), offset, shape
        if key not in self._touched:
            self._touched[key] = [
                piece
                for piece in layout.pieces
                if all(max(a, b) < min(a + m, b + n) for a, m, b, n in zip(offset, shape, piece.offset, piece.size, strict=True))
            ]
        return self._touched[key]

    def _handle(self, piece: Lying, name: str) -> Any:
        if piece.file not in self._handles:
            self._handles[piece.file] = _opened(self._folder / piece.file)
        handle, held = self._handles[piece.file]
        said, dtype = held.get(name), NAMES[self._layouts[name].dtype]
        if said is None or said.shape != piece.size or said.dtype != dtype:
            raise ValueError(f"{self._folder / piece.file} is damaged: it holds no {name} of {piece.size} {dtype}; use another checkpoint")
        return handle


def _opened(path: Path) -> tuple[Any, Mapping[str, Held]]:
    """An open file of tensors, and the tensors that its header lists."""
    held = header(path, within=path.parent).tensors
    try:
        return safe_open(path, framework="pt"), held
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
