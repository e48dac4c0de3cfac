"""The package PySceneDetect, an extra: its versions, and what one of its detectors finds in frames that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sora.curation.spans import Transition

RATE = 25.0  # its lengths are given in frames, so any rate gives the same cuts
LACKING = (
    "cuts=adaptive, content and both need PySceneDetect and OpenCV, which are not installed: pip install scenedetect-headless "
    "opencv-python-headless (the extra `curation`), or choose cuts=transnetv2, fixed or none"
)


class Following:
    """A detector of PySceneDetect that is given a video's frames one after another, RGB, and answers with the numbers of new shots' first
    frames."""

    def __init__(self, detector: Any) -> None:
        self._detector, self._frames = detector, 0
        self._timecode = package().FrameTimecode

    def add(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[int]:
        """The cuts that this frame shows, which may lie some frames before it."""
        found = self._detector.process_frame(self._timecode(self._frames, RATE), np.ascontiguousarray(frame[..., ::-1]))
        self._frames += 1
        return [cut.frame_num for cut in found if cut.frame_num > 0]

    def ended(self) -> list[int]:
        """The cuts that only the end of the video shows."""
        if not self._frames:
            return []
        return [cut.frame_num for cut in self._detector.post_process(self._timecode(self._frames - 1, RATE)) if cut.frame_num > 0]


def found_by(detector: Any, frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> list[Transition]:
    """The hard cuts that a detector of PySceneDetect finds in a video's frames, RGB."""
    following = Following(detector)
    cuts = [cut for frame in frames for cut in following.add(frame)] + following.ended()
    return [Transition(cut, cut) for cut in sorted(set(cuts))]


def package() -> Any:
    """The package scenedetect; ValueError says how to install it."""
    try:
        import cv2  # noqa: F401  scenedetect does without it until it is given a frame
        import scenedetect
        import scenedetect.detectors
    except ImportError as error:
        raise ValueError(LACKING) from error
    return scenedetect


def versions() -> str:
    """The versions on which cuts depend."""
    scenedetect = package()
    import cv2

    return f"scenedetect {scenedetect.__version__}, opencv {cv2.__version__}"
