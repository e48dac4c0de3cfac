"""Key maps: which of a published checkpoint's tensors is which of ours. Data, read in both directions.

A published tensor is a stack of slices of ours, in the order named, along `axis`; "qkv.weight[1/3]" is the second third of qkv.weight's
rows. `shape` is an einops pattern from that stack to the published tensor, and its axes t, h, w are the patch's; two and six are numbers.
Of a table, ".*" stands for ".weight" and for ".bias". Two published tensors that name one slice must be equal. Where `added` is true the
published tensor is the sum of ours: the first takes it over and the others begin at zero.
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
    """What of ours a published tensor is: slices apart by blanks. See the top of this file."""

    ours: str
    shape: str = ""
    axis: int = 0
    added: bool = False
    halved: bool = False  # the published one may have a second half of channels, for variances, which is left behind


@dataclass(frozen=True)
class KeyMap:
    """options: of the class in diffusers. table: gives the key of each of its tensors. patch: frames, rows, columns.

    Beware: a network whose options are not the class's may have no table, so `options` are compared first.
    """

    options: Options
    table: Callable[[], Mapping[str, Key]]
    patch: tuple[int, ...]

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        return self.table()

    @property
    def kind(self) -> str:
        """The class in diffusers."""
        return self.options.names[0]

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip("thw", self.patch, strict=True)) | {"two": 2, "six": 6}


def keys(table: Mapping[str, str | Key], *, theirs: str = "", ours: str = "") -> dict[str, Key]:
    """A table written out: prefixes in front of both sides, and weights and biases for ".*"."""
    found = {}
    for key, value in table.items():
        entry = value if isinstance(value, Key) else Key(value)
        for kind in ("weight", "bias") if key.endswith(".*") else ("",):
            slices = " ".join(ours + piece.replace("*", kind) for piece in entry.ours.split())
            found[theirs + key.replace("*", kind)] = replace(entry, ours=slices)
    return found


def to_theirs(map_: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that our tensors are."""
    found = {}
    for name, key in map_.keys.items():
        pieces = [_slice(ours[of], number, count) for of, number, count in _slices(key)]
        whole = sum(pieces[1:], pieces[0]) if key.added else torch.cat(pieces, key.axis)
        found[name] = _shaped(whole, key, map_.sizes).contiguous()
    return found


def to_ours(map_: KeyMap, theirs: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, of the shapes and types of `like`, that the published tensors are.

    Raises:
        ValueError: tensors are missing, unknown or of another shape, or two that are one of ours differ; the message names them.
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
    """The published tensors that are ours, by their names. Only shapes are looked at.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; the message names them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in to_theirs(map_, {k: v.to("meta") for k, v in like.items()}).items()}
    given = {name: _halved(theirs[name], key, expected[name], map_) for name, key in map_.keys.items() if name in theirs}
    if wrong := _wrong(map_, given, theirs, expected):
        raise ValueError(f"this is no checkpoint of {map_.kind} as configured: {'; '.join(wrong)}; choose the dit that it was made of")
    return given


def _wrong(map_: KeyMap, given: Mapping[str, Tensor], theirs: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is not as it should be, by name, in three kinds."""
    shapes = [f"{name} {list(t.shape)} instead of {list(expected[name])}" for name, t in given.items() if tuple(t.shape) != expected[name]]
    kinds = (("missing", map_.keys.keys() - theirs.keys()), ("unknown", theirs.keys() - map_.keys.keys()), ("of another shape", shapes))
    return [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names]


def _few(names: Any) -> str:
    first = sorted(names)[:5]
    return ", ".join(first) + (", …" if len(names) > 5 else "")


def uncovered(map_: KeyMap, like: Mapping[str, Tensor]) -> list[str]:
    """Our tensors of which no published tensor, or only a part, is a slice; a complete map leaves none."""
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
    """Part `number` of `of` equal ones, along the rows."""
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
    """The first half of the latents' channels, where the published layer predicts variances too."""
    if not key.halved or tensor.shape[0] != 2 * expected[0]:
        return tensor
    area = map_.patch[0] * map_.patch[1] * map_.patch[2]
    return tensor.unflatten(0, (area, -1))[:, : expected[0] // area].flatten(0, 1)
