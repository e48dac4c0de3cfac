"""Hard and gradual transitions by a network that looks at every frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from sora.curation.cuts.frames import HEIGHT, WIDTH, Small, shrunk, steadied
from sora.curation.cuts.joining import joined
from sora.curation.cuts.peaks import Peaks
from sora.curation.cuts.windows import ShotProbabilities
from sora.curation.spans import Transition
from sora.video.reader import covering


@dataclass(frozen=True, kw_only=True)
class TransNetV2Cuts:
    """Transitions that TransNetV2 finds (Souček and Lokoč 2020), in windows as its authors run it. It sees few wipes.

    Flashes of a few frames are mended before it looks, and blank frames beside a transition become a part of it. peaks: what its
    probabilities must be. A video takes a few bytes of memory a frame.
    """

    peaks: Peaks

    def identity(self) -> str:
        """The hash of the weights, and the settings. Reads the weight file."""
        return f"transnetv2 {self._probabilities.sha256} {self.peaks.identity()}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size of the same aspect that covers the network's."""
        return covering(height, width, (HEIGHT, WIDTH)) if height > HEIGHT and width > WIDTH else (height, width)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        blank: list[bool] = []

        def pixels(small: Small) -> np.ndarray:
            blank.append(small.blank)
            return small.pixels

        parts = list(self._probabilities.along(map(pixels, steadied(map(shrunk, frames)))))
        return joined(self.peaks.transitions(np.concatenate(parts)), blank) if parts else []

    @cached_property
    def _probabilities(self) -> ShotProbabilities:
        return ShotProbabilities()
