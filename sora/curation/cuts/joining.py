"""Runs of marked frames, and transitions that meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from sora.curation.spans import Transition


def runs(marked: Bool[np.ndarray, "T"]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of marked frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    for first, end in edges.reshape(-1, 2):
        yield int(first), int(end)


def joined(transitions: Iterable[Transition], blank: Sequence[bool]) -> list[Transition]:
    """Transitions in order and apart: those that meet become one, with the blank frames beside them, as in a fade through black."""
    found: list[Transition] = []
    for first, end in sorted(transitions):
        while first > 0 and blank[first - 1]:
            first -= 1
        while end < len(blank) and blank[end]:
            end += 1
        if found and first <= found[-1].end:
            first, end = found[-1].first, max(end, found.pop().end)
        found.append(Transition(first, end))
    return found
