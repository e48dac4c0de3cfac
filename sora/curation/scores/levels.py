"""Exposure and sharpness of a clip."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sora.curation.scores.opencv import cv2
from sora.curation.scores.still import Margins

DARK, BRIGHT = 4, 251  # luma that counts as clipped: up to, from
RIM = 2  # rows beside a bar whose Laplacian sees the bar


class Levels:
    """Histogram of a clip's luma and the mean square of its Laplacian at each pixel."""

    def __init__(self) -> None:
        self._histogram = np.zeros(256)
        self._squares: ndarray | None = None
        self._count = 0

    def add(self, grey: UInt8[ndarray, "H W"]) -> None:
        self._histogram += cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
        laplacian = cv2.Laplacian(grey, cv2.CV_32F)
        if self._squares is None:
            self._squares = np.zeros(grey.shape, np.float32)
        cv2.accumulateSquare(laplacian, self._squares)
        self._count += 1

    def scores(self, bars: Margins) -> dict[str, float]:
        """The scores of the picture within the bars, which count as black."""
        assert self._squares is not None
        shares = self._histogram / self._histogram.sum()
        black = bars.share(*self._squares.shape)
        rimmed = Margins(*(side + RIM if side else 0 for side in bars))
        within = rimmed.inside(self._squares)
        return {
            "sharpness": float(within.mean(dtype=np.float64)) / self._count if within.size else 0.0,
            "luma": min(1.0, float(shares @ np.arange(256)) / 255 / (1 - black)),
            "clipped_black": min(1.0, max(0.0, (float(shares[: DARK + 1].sum()) - black) / (1 - black))),
            "clipped_white": min(1.0, float(shares[BRIGHT:].sum()) / (1 - black)),
        }
