"""Checks that a command does not write to a path that it reads, nor write two things to one path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sora.config.check import flatten
from sora.config.kinds import Kinds, ValueKind

GOES_ON = "resume"  # names the run that a command writes to on purpose
SHARED = ("output", "cache", "statistics")  # each run of a sweep gets its own output; the others are written once and shared


def refuse_one_place(tree: Mapping[str, Any], kinds: Kinds) -> None:
    """Raise ValueError if a path that is written (marked `<out>` in the YAML) is also that of another key, in any spelling."""
    paths = list(_paths(tree, kinds))
    for number, (key, path, written) in enumerate(paths):
        for other, same, also in paths[:number]:
            if (written or also) and GOES_ON not in (key, other) and os.path.realpath(path) == os.path.realpath(same):
                out, beside = (key, other) if written else (other, key)
                raise ValueError(f"{out}={path} is what {beside}= names, too, and would be written over; name another {out}=")


def refuse_shared(written: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError if several runs of a sweep would write to one file or folder."""
    seen: set[tuple[str, str]] = set()
    for one in written:
        for key, path in one.items():
            place = (key, os.path.realpath(path))
            if key not in SHARED and place in seen:
                raise ValueError(f"{key}={path} is written by several runs of the sweep; leave it out, or name one for each")
            seen.add(place)


def written(tree: Mapping[str, Any], kinds: Kinds) -> dict[str, str]:
    """The paths that a command writes, by key; only those that are set."""
    return {key: path for key, path, out in _paths(tree, kinds) if out}


def _paths(tree: Mapping[str, Any], kinds: Kinds) -> Iterator[tuple[str, str, bool]]:
    """Each path that is set, its key, and whether it is written."""
    for key, value in flatten(dict(tree)).items():
        kind = kinds.of(key)
        for item in value if isinstance(value, list) else [value]:
            inner = kind.items if isinstance(value, list) else kind
            if isinstance(item, str) and isinstance(inner, ValueKind) and "path" in inner.scalars and item != "???":
                yield key, item, "out" in inner.scalars
