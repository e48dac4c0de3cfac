"""Clips made of drawn frames, whose scores and copies are known by construction."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from sora.curation.duplicates.signature import Signature
from sora.curation.scores.cheap import MeasuredSpan, analysis_size, cheap_scores
from sora.curation.spans import Span
from sora.video.files import Shown

HEIGHT, WIDTH = 144, 256


def texture(height: int = HEIGHT, width: int = WIDTH, *, seed: int = 0, fineness: float = 2.0) -> np.ndarray:
    """A coloured picture of soft blots, uint8 (H, W, 3), that uses all of the range of values."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), fineness) + 2 * cv2.GaussianBlur(noise, (0, 0), 4 * fineness)
    return np.clip(127 + 55 * soft / soft.std(), 0, 255).astype(np.uint8)


def panned(frames: int, *, pixels: int = 2, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """A window that moves to the right over a texture, so many pixels a frame."""
    wide = texture(height, width + abs(pixels) * frames, seed=seed)
    return np.stack([wide[:, pixels * t : pixels * t + width] for t in range(frames)])


def shown(frames: np.ndarray, fps: float = 24.0) -> Iterator[Shown]:
    return (Shown(np.ascontiguousarray(frame), number / fps, True) for number, frame in enumerate(frames))


def measured(frames: np.ndarray, fps: float = 24.0) -> MeasuredSpan:
    """The scores and the signature of all frames as one clip, resized as the reader would."""
    height, width = analysis_size(*frames.shape[1:3])
    if (height, width) != frames.shape[1:3]:
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    return next(cheap_scores(shown(frames, fps), [Span(0, len(frames))], fps=fps))


def scores(frames: np.ndarray, fps: float = 24.0) -> dict[str, float]:
    return measured(frames, fps).scores


def signature(frames: np.ndarray, fps: float = 24.0) -> Signature:
    return measured(frames, fps).signature
