"""Fifteen numbers for how much a video changes over time: no weights, seconds for a thousand clips, blind to everything that stands still.

Appearance features, of single frames or of a random network such as `rand3d`, hardly change when real clips are frozen or their frames
exchanged; these do, with a few dozen clips. They measure how much changes, at which lag in time and scale in space, and how evenly, but not
in which direction, so a clip played backwards has the same features. A Fréchet distance over them is a distance of motion alone, comparable
only with itself: read it beside one of appearance.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sora.metrics.extractors.pixels import Preparation

LAGS = (1, 2, 4, 8)  # frames
SCALES = 3  # each half as large as the one before
LEAST = 1e-3  # of [0, 1] values, added before the logarithm: a quarter of a file's grey level
USUAL = 0.02  # the value that maps to 0, some five grey levels, so that polynomial kernels get numbers around 1


class Motion3D:
    """For each of three scales (pixels, means of 2x2, of 4x4): the logarithms of the mean absolute difference of frames at lags of 1, 2, 4
    and 8, and of the standard deviation over time of that at lag 1. A lag that is too long for a clip becomes its longest."""

    name = "motion3d-v1"
    dimension, minimum_frames, logits, canonical = SCALES * (len(LAGS) + 1), 2, False, False
    preparation = Preparation(size=None, kernel="none")

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"lags": list(LAGS), "scales": SCALES, "least": LEAST, "usual": USUAL}

    @property
    def fingerprint(self) -> str:
        """A hash of the definition, since there are no weights."""
        told = f"{self.name}: log(({LEAST} + mean |difference|) / {USUAL}) at lags {LAGS} of {SCALES} scales"
        return hashlib.sha256(told.encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 15"]:
        """Features of uint8 or float [0, 1] videos, B T H W 3, of at least two frames, each video by itself."""
        return torch.stack([self._one(video) for video in videos])

    def _one(self, video: Tensor) -> Tensor:
        frames = self.preparation(video[None])[0].transpose(0, 1)  # T 3 H W
        found = []
        for scale in range(SCALES):
            frames = functional.avg_pool2d(frames, 2, ceil_mode=True) if scale else frames
            for lag in LAGS:
                reach = min(lag, len(frames) - 1)
                change = (frames[reach:] - frames[:-reach]).abs().mean(dim=(1, 2, 3))
                found.append(change.mean())
                if lag == 1:
                    found.append(change.std(unbiased=False))
        return torch.log((torch.stack(found) + LEAST) / USUAL)
