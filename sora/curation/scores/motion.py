"""Motion of the camera and of objects by optical flow (DIS, Kroeger et al. 2016), and noise over time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.curation.scores.opencv import cv2

SHORT = 72  # pixels of the short side at which flow is computed
STEP = 6  # pixels between the points to which the camera's motion is fitted
GAP = 0.08  # seconds, at least, between the two frames of a pair: across a frame that pulldown repeats
ROUNDS = 4  # of the robust fit
SOFT = 0.3  # pixels of residual at which a point counts a quarter
PLAIN, ENOUGH = 24, 0.03  # greatest gradient (sum of both Sobel responses) of a plain place; least share of the picture in such places
LOWER = 0.25, 0.31864  # a quantile of the absolute change of plain places, and its value for a normal distribution of deviation 1


class MotionMeter:
    """Running means of the speeds of camera and objects, and of the noise, from pairs of frames."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._first: tuple[ndarray, ndarray, float] | None = None
        self._sums, self._pairs = np.zeros(3), 0

    def begin(self, grey: UInt8[ndarray, "H W"], time: float) -> None:
        """Take a frame as the first of a pair."""
        self._first = grey.copy(), _small(grey), time

    def follow(self, grey: UInt8[ndarray, "H W"], time: float, step: float) -> None:
        """Offer a later frame: the first that is `GAP` or more behind the first of the pair completes it. step: seconds between frames."""
        if self._first is None or time - self._first[2] < GAP - step / 4:
            return
        before, small, since = self._first
        camera, objects = speeds(self._flow.calc(small, _small(grey), None))
        self._sums += (camera / (time - since) / SHORT, objects / (time - since) / SHORT, temporal_noise(before, grey))
        self._pairs += 1
        self._first = None

    def scores(self) -> dict[str, float]:
        camera, objects, noise = (self._sums / max(self._pairs, 1)).tolist()
        return {"camera_motion": camera, "object_motion": objects, "noise": noise}


def speeds(flow: Float[ndarray, "h w 2"]) -> tuple[float, float]:
    """The mean length of the camera's motion and of what it leaves of the flow, in the flow's unit.

    The camera's motion is the shift, rotation and zoom (four parameters) that fit the flow with weights of
    Geman and McClure, starting at its median.
    """
    points = flow[STEP // 2 :: STEP, STEP // 2 :: STEP].astype(np.float64)
    height, width = points.shape[:2]
    place = (STEP * ((np.arange(width) - (width - 1) / 2) + 1j * (np.arange(height)[:, None] - (height - 1) / 2))).ravel()
    moved = (points[..., 0] + 1j * points[..., 1]).ravel()
    shift, turn = complex(np.median(moved.real), np.median(moved.imag)), 0j
    for _ in range(ROUNDS):
        residual = np.abs(moved - shift - turn * place)
        weights = 1 / (1 + (residual / SOFT) ** 2) ** 2
        weights /= weights.sum()
        centre, mean = weights @ place, weights @ moved
        around = place - centre
        turn = (weights * around.conj()) @ (moved - mean) / max(float(weights @ np.abs(around) ** 2), 1e-9)
        shift = mean - turn * centre
    camera = shift + turn * place
    return float(np.abs(camera).mean()), float(np.abs(moved - camera).mean())


def temporal_noise(before: UInt8[ndarray, "H W"], after: UInt8[ndarray, "H W"]) -> float:
    """The standard deviation of the noise of one frame, from the lower quartile of the absolute change of plain places, where motion
    changes little; 0 where most of them do not change at all, as with noise below half a level, and where there are hardly any."""
    soft = cv2.GaussianBlur(before, (5, 5), 0)
    across, down = (cv2.convertScaleAbs(cv2.Sobel(soft, cv2.CV_16S, x, 1 - x)) for x in (1, 0))
    plain = cv2.threshold(cv2.add(across, down), PLAIN, 1, cv2.THRESH_BINARY_INV)[1]
    counts = cv2.calcHist([cv2.absdiff(before, after)], [0], plain, [256], [0, 256]).ravel()
    total = counts.sum()
    if total < ENOUGH * before.size or counts[0] > total / 2:
        return 0.0
    shares = np.cumsum(counts) / total
    share, value = LOWER
    level = int(np.argmax(shares >= share))
    below = float(shares[level - 1]) if level else 0.0
    # A change that rounds to 0 lies below one half; one that rounds to n > 0 in [n - 1/2, n + 1/2).
    within = (share - below) / (float(shares[level]) - below)
    return (level - 0.5 + within if level else 0.5 * within) / value / 2**0.5


def _small(grey: UInt8[ndarray, "H W"]) -> UInt8[ndarray, "h w"]:
    height, width = grey.shape
    scale = SHORT / min(height, width)
    size = (round(width * scale), round(height * scale))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
