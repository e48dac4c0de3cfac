"""Key maps between the tensors of a published checkpoint and our parameters, used in both directions.

A published tensor is a concatenation of slices of our tensors along `axis`; "qkv.weight[1/3]" is the second third of qkv.weight's rows.
`shape` is an einops pattern from the concatenation to the published tensor; its axes t, h, w are the patch size, two is 2 and six is 6.
In a table, ".*" stands for both ".weight" and ".bias". If two published tensors map to the same slice, they must be equal. If `added` is
true, the published tensor is the sum of our tensors: on loading, the first gets the whole value and the others are set to zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from sora.dit.published.options import Options

SLICE = re.compile(r"(?P<name>[^\[]+)(\[(?P<number>\d+)/(?P<of>\d+)\])?")


@dataclass(frozen=True)
class Key:
    """Our counterpart of a published tensor, see the module docstring. ours: slices of our tensors, separated by spaces."""

    ours: str
    shape: str = ""
    axis: int = 0
    added: bool = False
    halved: bool = False  # the published tensor may have a second half of channels, for variances, which is dropped


@dataclass(frozen=True)
class KeyMap:
    """Key map of one class of diffusers. table: returns the `Key` of each of its tensors. patch: frames, rows and columns of a patch.

    Beware: compare `options` before using `table`, which may fail for a network that does not fit the class.
    """

    options: Options
    table: Callable[[], Mapping[str, Key]]
    patch: tuple[int, ...]

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        return self.table()

    @property
    def kind(self) -> str:
        """Name of the class in diffusers."""
        return self.options.names[0]

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip("thw", self.patch, strict=True)) | {"two": 2, "six": 6}


def keys(table: Mapping[str, str | Key], *, theirs: str = "", ours: str = "") -> dict[str, Key]:
    """Expand a table: prepend the prefixes `theirs` and `ours`, and replace ".*" by ".weight" and ".bias"."""
    found = {}
    for key, value in table.items():
        entry = value if isinstance(value, Key) else Key(value)
        for kind in ("weight", "bias") if key.endswith(".*") else ("",):
            slices = " ".join(ours + piece.replace("*", kind) for piece in entry.ours.split())
            found[theirs + key.replace("*", kind)] = replace(entry, ours=slices)
    return found


def to_theirs(map_: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our tensors to the published ones."""
    found = {}
    for name, key in map_.keys.items():
        pieces = [_slice(ours[of], number, count) for of, number, count in _slices(key)]
        whole = sum(pieces[1:], pieces[0]) if key.added else torch.cat(pieces, key.axis)
        found[name] = _shaped(whole, key, map_.sizes).contiguous()
    return found


def to_ours(map_: KeyMap, theirs: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert published tensors to ours, with the shapes and dtypes of `like`.

    Raises:
        ValueError: tensors are missing, unknown or of another shape, or two that map to the same slice differ; the message names them.
    """
    given = fitting(map_, theirs, like)
    found = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    filled: dict[tuple[str, int, int], str] = {}
    for name, key in map_.keys.items():
        slices = _slices(key)
        whole = _unshaped(given[name], key, map_.sizes)
        targets = [_slice(found[of], number, count) for of, number, count in slices]
        pieces = [whole, *map(torch.zeros_like, targets[1:])] if key.added else whole.split([t.shape[key.axis] for t in targets], key.axis)
        for place, target, piece in zip(slices, targets, pieces, strict=True):
            if place in filled and not torch.equal(target, piece.to(target)):
                raise ValueError(
                    f"{name} is not {filled[place]}, but they are one tensor here ({place[0]}); this checkpoint cannot be taken over"
                )
            filled[place] = name
            target.copy_(piece)
    return found


def fitting(map_: KeyMap, theirs: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors by name, without the channels of variances, after a check of their names and shapes.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; the message names them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in to_theirs(map_, {k: v.to("meta") for k, v in like.items()}).items()}
    given = {name: _halved(theirs[name], key, expected[name], map_) for name, key in map_.keys.items() if name in theirs}
    if wrong := _wrong(map_, given, theirs, expected):
        raise ValueError(f"this is no checkpoint of {map_.kind} as configured: {'; '.join(wrong)}; choose the dit that it was made of")
    return given


def _wrong(map_: KeyMap, given: Mapping[str, Tensor], theirs: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Messages about missing tensors, unknown tensors, and tensors of another shape."""
    shapes = [f"{name} {list(t.shape)} instead of {list(expected[name])}" for name, t in given.items() if tuple(t.shape) != expected[name]]
    kinds = (("missing", map_.keys.keys() - theirs.keys()), ("unknown", theirs.keys() - map_.keys.keys()), ("of another shape", shapes))
    return [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names]


def _few(names: Any) -> str:
    first = sorted(names)[:5]
    return ", ".join(first) + (", …" if len(names) > 5 else "")


def uncovered(map_: KeyMap, like: Mapping[str, Tensor]) -> list[str]:
    """Names of our tensors that the map does not cover completely; empty for a complete map."""
    counts: dict[str, set[tuple[int, int]]] = {}
    for key in map_.keys.values():
        for name, number, of in _slices(key):
            counts.setdefault(name, set()).add((number, of))
    return sorted(name for name in like if len(counts.get(name, ())) != next((of for _, of in counts.get(name, ())), 0))


def _slices(key: Key) -> list[tuple[str, int, int]]:
    return list(_each(key.ours))


def _each(ours: str) -> Iterator[tuple[str, int, int]]:
    for piece in ours.split():
        match = SLICE.fullmatch(piece)
        assert match is not None, piece
        yield match["name"], int(match["number"] or 0), int(match["of"] or 1)


def _slice(tensor: Tensor, number: int, of: int) -> Tensor:
    """Slice `number`, from 0, of `of` equal slices along the rows."""
    return tensor.unflatten(0, (of, -1))[number]


def _shaped(tensor: Tensor, key: Key, sizes: Mapping[str, int]) -> Tensor:
    return rearrange(tensor, key.shape, **_named(key.shape, sizes)) if key.shape else tensor


def _unshaped(tensor: Tensor, key: Key, sizes: Mapping[str, int]) -> Tensor:
    if not key.shape:
        return tensor
    before, _, after = key.shape.partition("->")
    return rearrange(tensor, f"{after}->{before}", **_named(key.shape, sizes))


def _named(pattern: str, sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if re.search(rf"\b{name}\b", pattern)}


def _halved(tensor: Tensor, key: Key, expected: tuple[int, ...], map_: KeyMap) -> Tensor:
    """Drop the second half of the output channels of each position, where the published layer also predicts variances."""
    if not key.halved or tensor.shape[0] != 2 * expected[0]:
        return tensor
    area = map_.patch[0] * map_.patch[1] * map_.patch[2]
    return tensor.unflatten(0, (area, -1))[:, : expected[0] // area].flatten(0, 1)
