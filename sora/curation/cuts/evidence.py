"""What is gathered of a video while its frames pass, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from sora.curation.cuts.frames import Small
from sora.curation.cuts.slow import LAGS
from sora.curation.cuts.windows import ASIDE
from sora.curation.cuts.wipes import MARGIN
from sora.curation.spans import Transition

AHEAD = 256  # frames that are judged at once
AROUND = max(MARGIN, LAGS[-1], ASIDE) + 40  # further ones on both sides, on which the judgement depends


class Chunk(NamedTuple):
    """Frames of a video from number `start` on, of which those from `first` to `end` (numbers in the video) are to be judged."""

    pixels: UInt8[np.ndarray, "T 27 48 3"]
    start: int
    first: int
    end: int


@dataclass
class Evidence:
    """What is known of a video: its hard cuts by differences, which frames were mended and which are blank, the network's probabilities (0
    where it did not look), where it looked, and wipes."""

    cuts: list[int] = field(default_factory=list)
    mended: list[bool] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)
    probabilities: list[Float32[np.ndarray, "n 2"]] = field(default_factory=list)
    looked: list[Bool[np.ndarray, "n"]] = field(default_factory=list)
    wipes: list[Transition] = field(default_factory=list)

    def sound_cuts(self) -> list[int]:
        """The hard cuts that no flash made."""
        return [cut for cut in self.cuts if not any(self.mended[cut - 1 : cut + 1])]


def chunks(frames: Iterable[Small]) -> Iterator[Chunk]:
    """The frames in chunks of AHEAD, each with AROUND frames more on both sides, or as many as the video has."""
    held: list[np.ndarray] = []
    start = first = 0
    for small in frames:
        held.append(small.pixels)
        if start + len(held) == first + AHEAD + AROUND:
            yield Chunk(np.stack(held), start, first, first + AHEAD)
            first += AHEAD
            del held[: max(0, first - AROUND - start)]
            start = max(start, first - AROUND)
    while held and first < start + len(held):
        end = min(first + AHEAD, start + len(held))
        yield Chunk(np.stack(held), start, first, end)
        first = end
