"""Runs of marked frames, and transitions that meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from sora.curation.spans import Transition

CLOSE = 4  # frames that are no shot


def runs(marked: Bool[np.ndarray, "T"]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of marked frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    for first, end in edges.reshape(-1, 2):
        yield int(first), int(end)


def joined(transitions: Iterable[Transition], blank: Sequence[bool]) -> list[Transition]:
    """Transitions in order and apart, with the blank frames at most CLOSE frames beside them, as in a fade through black. Those that meet
    become one, and so do those of which one is gradual if fewer than CLOSE frames are between them."""
    found: list[Transition] = []
    for first, end in sorted(transitions):
        while near := [place for place in range(max(0, first - CLOSE), first) if blank[place]]:
            first = near[0]
        while near := [place for place in range(end, min(len(blank), end + CLOSE)) if blank[place]]:
            end = near[-1] + 1
        slack = CLOSE - 1 if found and (end > first or found[-1].end > found[-1].first) else 0
        if found and first <= found[-1].end + slack:
            first, end = found[-1].first, max(end, found.pop().end)
        found.append(Transition(first, end))
    return found
