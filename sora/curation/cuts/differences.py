"""Hard cuts by the differences of neighbouring frames: detectors of PySceneDetect, given our frames instead of its reader's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sora.curation.cuts.frames import within
from sora.curation.cuts.pyscenedetect import found_by, package, versions
from sora.curation.spans import Transition


@dataclass(frozen=True, kw_only=True)
class AdaptiveCuts:
    """Cuts where a frame differs from the one before much more than its neighbours do from theirs (AdaptiveDetector).

    threshold: how many times the mean change of the `window` frames on each side a change must be. least_change: and how large, in mean
    levels of hue, saturation and brightness of 255. shortest: frames between two cuts; a cut that follows sooner is not reported. short:
    pixels of the frames' shorter side. Gradual transitions are not found.
    """

    threshold: float
    window: int
    least_change: float
    shortest: int
    short: int

    def __post_init__(self) -> None:
        _check(threshold=self.threshold, window=self.window, least_change=self.least_change, shortest=self.shortest, short=self.short)

    def identity(self) -> str:
        """Versions of PySceneDetect and OpenCV, and the settings."""
        said = f"threshold={self.threshold} window={self.window} least_change={self.least_change}"
        return f"adaptive {said} shortest={self.shortest} short={self.short} ({versions()})"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return within(height, width, self.short)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        return found_by(self.detector(), frames)

    def detector(self) -> Any:
        """A detector of PySceneDetect with these settings, for one video."""
        return package().detectors.AdaptiveDetector(
            adaptive_threshold=self.threshold,
            min_scene_len=self.shortest,
            window_width=self.window,
            min_content_val=self.least_change,
        )


@dataclass(frozen=True, kw_only=True)
class ContentCuts:
    """Cuts where a frame differs from the one before by more than a fixed amount (ContentDetector).

    threshold: mean change of hue, saturation and brightness, in levels of 255. shortest: frames between two cuts; cuts that follow each
    other sooner are merged. short: pixels of the frames' shorter side. Slow transitions are not found, fast motion is taken for cuts.
    """

    threshold: float
    shortest: int
    short: int

    def __post_init__(self) -> None:
        _check(threshold=self.threshold, shortest=self.shortest, short=self.short)

    def identity(self) -> str:
        """Versions of PySceneDetect and OpenCV, and the settings."""
        return f"content threshold={self.threshold} shortest={self.shortest} short={self.short} ({versions()})"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return within(height, width, self.short)

    def __call__(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> list[Transition]:
        return found_by(package().detectors.ContentDetector(threshold=self.threshold, min_scene_len=self.shortest), frames)


def _check(*, short: int, **numbers: float) -> None:
    if not 16 <= short <= 1080:
        raise ValueError(f"cuts.short={short} must be 16 to 1080 pixels of the frames' shorter side")
    for name, number in numbers.items():
        if not number >= (1 if name == "window" else 0):
            raise ValueError(f"cuts.{name}={number} must be {1 if name == 'window' else 0} or more")
