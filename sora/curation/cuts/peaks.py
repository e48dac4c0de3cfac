"""Turns what detectors say of each frame into transitions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from sora.curation.cuts.joining import runs
from sora.curation.spans import Transition

SHORT = 4  # frames: what is shorter is a hard cut that the network saw on both of its sides


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """How probabilities of frames become transitions.

    Frames that the network takes for parts of a transition, or the middle of one, make a run. sudden: the probability of a middle from
    which a run is a transition, however short it is. slow: the same for runs of `slow_frames` or more, which motion and flashes do not
    make. part: the probability of being a part from which a frame belongs to a run.
    """

    sudden: float
    slow: float
    slow_frames: int
    part: float

    def __post_init__(self) -> None:
        for name in ("sudden", "slow", "part"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"cuts.peaks.{name}={getattr(self, name)} must be a probability between 0 and 1")
        if self.slow > self.sudden:
            raise ValueError(f"cuts.peaks.slow={self.slow} must be cuts.peaks.sudden={self.sudden} or less")
        if self.slow_frames < 1:
            raise ValueError(f"cuts.peaks.slow_frames={self.slow_frames} must be 1 frame or more")

    def identity(self) -> str:
        return f"sudden={self.sudden} slow={self.slow} slow_frames={self.slow_frames} part={self.part}"

    def transitions(self, probabilities: Float32[np.ndarray, "T 2"]) -> list[Transition]:
        """The transitions of a video, in order and apart, from both probabilities of each frame (`ShotProbabilities`).

        A hard cut lies after the frame that is the middle, which is the last one of the shot before.
        """
        middle, part = probabilities[:, 0], probabilities[:, 1]
        found = []
        for first, end in runs((middle > self.slow) | (part > self.part)):
            most = float(middle[first:end].max())
            if not (most > self.sudden or (most > self.slow and end - first >= self.slow_frames)):
                continue
            if end - first < SHORT:
                cut = first + int(middle[first:end].argmax()) + 1
                found += [Transition(cut, cut)] if cut < len(middle) else []
            else:
                found.append(Transition(first, end))
        return found
