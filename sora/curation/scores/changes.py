"""How a clip changes from frame to frame: flashes, frozen and repeated frames, the pattern of 3:2 pulldown."""

from __future__ import annotations

from collections import deque

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.curation.scores.opencv import cv2

SAME, DIFFERENT = 0.3, 10  # greatest mean difference of equal frames; a pixel that differs by more is another picture's
FEW = 1e-4  # greatest share of such pixels in equal frames
FROZEN = 0.5  # seconds from which a run of equal frames is frozen
FLASH = 1 / 3  # seconds within which a flash is over
CYCLE = 5  # frames that hold four of film
UNEVEN, PULLED = 0.02, 0.05  # deviation between the five phases: that of coded video, and at least that of pulldown
_CHUNK = 256  # frames whose flashes are looked for together


class Changes:
    """Running statistics of the differences between consecutive frames. fps: of the video."""

    def __init__(self, fps: float) -> None:
        self._window = max(2, round(FLASH * fps))
        self._fps = fps
        self._before: ndarray | None = None
        self._since = self._last = 0.0
        self._frames = self._run = self._frozen = self._repeated = 0
        self._lumas: list[float] = []
        self._flash = 0.0
        self._pulldown = Pulldown()

    def add(self, grey: UInt8[ndarray, "H W"], time: float) -> None:
        self._lumas.append(cv2.mean(grey)[0])
        if len(self._lumas) >= _CHUNK + self._window:
            self._flash = max(self._flash, largest_flash(np.array(self._lumas), self._window))
            del self._lumas[: -self._window]
        if self._before is not None:
            mean = cv2.norm(grey, self._before, cv2.NORM_L1) / grey.size
            equal = mean <= SAME and _different(grey, self._before) <= FEW * grey.size
            self._pulldown.add(mean)
            if not equal:
                self._end_run()
                self._since = time
            self._run += equal
        else:
            self._since = time
        self._before, self._last = grey, time
        self._frames += 1

    def scores(self) -> dict[str, float]:
        self._end_run()
        flash = max(self._flash, largest_flash(np.array(self._lumas), self._window))
        return {
            "flash": flash / 255,
            "frozen": self._frozen / self._frames,
            "repeated": self._repeated / self._frames,
            "telecine": self._pulldown.strength(),
        }

    def _end_run(self) -> None:
        """Count a run of equal frames that ended: all of its frames if it lasted, else those after its first."""
        if self._run and self._last - self._since + 1 / self._fps >= FROZEN:
            self._frozen += self._run + 1
        else:
            self._repeated += self._run
        self._run = 0


def _different(grey: UInt8[ndarray, "H W"], before: UInt8[ndarray, "H W"]) -> int:
    """The number of pixels that are another picture's: a small object that moves changes few pixels, but by much."""
    return cv2.countNonZero(cv2.threshold(cv2.absdiff(grey, before), DIFFERENT, 1, cv2.THRESH_BINARY)[1])


class Pulldown:
    """The share of each difference in the five around it, by its place modulo five.

    Film of 24 frames a second shown at 30 repeats every fifth frame, or mixes the fields of two of five: the shares have a period of five.
    """

    def __init__(self) -> None:
        self._five: deque[float] = deque(maxlen=CYCLE)
        self._seen = 0
        self._counts, self._sums, self._squares = np.zeros(CYCLE), np.zeros(CYCLE), 0.0

    def add(self, difference: float) -> None:
        self._five.append(difference)
        self._seen += 1
        total = sum(self._five)
        if len(self._five) == CYCLE and total > CYCLE * SAME:
            share, phase = self._five[CYCLE // 2] / total, self._seen % CYCLE
            self._counts[phase] += 1
            self._sums[phase] += share
            self._squares += share * share

    def strength(self) -> float:
        """The share of variance that the phase explains, beyond what chance gives, faded out where phases hardly differ."""
        count = self._counts.sum()
        if count <= 2 * CYCLE or self._counts.min() == 0:
            return 0.0
        means = self._sums / self._counts
        centre = self._sums.sum() / count
        between = float(self._counts @ (means - centre) ** 2)
        total = self._squares - count * centre**2
        deviation = (between / count) ** 0.5
        if deviation <= UNEVEN:
            return 0.0
        explained = 1 - (max(total - between, 0.0) / (count - CYCLE)) / (total / (count - 1))
        return float(max(0.0, explained) * min(1.0, (deviation - UNEVEN) / (PULLED - UNEVEN)))


def largest_flash(lumas: Float[ndarray, " T"], window: int) -> float:
    """The largest change of the mean luma that is undone within `window` frames: the lesser of the way there and the way back."""
    largest = 0.0
    # Of a strobe of period two, windows of one parity never begin and end at the same level.
    for length in {min(window, len(lumas) - 1), min(window, len(lumas) - 1) - 1}:
        if length < 2:
            continue
        parts = np.lib.stride_tricks.sliding_window_view(lumas, length + 1)
        there, back = parts[:, 1:-1] - parts[:, :1], parts[:, 1:-1] - parts[:, -1:]
        undone = np.where(there * back > 0, np.minimum(np.abs(there), np.abs(back)), 0.0)
        largest = max(largest, float(undone.max()))
    return largest
