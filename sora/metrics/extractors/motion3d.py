"""Fifteen numbers of how a video changes along time: no weights, seconds for a thousand clips, blind to what stands still.

Features of appearance, of single frames or of a random network such as `rand3d`, hardly move when real clips are frozen or their frames
exchanged; these do, with a few dozen clips. They know how much changes, at which lag in time and size in space, and how evenly; not where
to, so a clip played backwards scores as forwards. A Fréchet distance over them is a distance of motion alone, comparable with nothing but
itself: read it beside one of appearance.
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
LEAST = 1e-3  # of [0, 1] values, added before the logarithm: a quarter of what a file can tell apart
USUAL = 0.02  # what is called 0: some five of 256 values, so that polynomial kernels see numbers around 1


class Motion3D:
    """For each of three scales (pixels, and means of 2x2 and 4x4 of them) the logarithm of the mean absolute difference of frames at lags
    of 1, 2, 4 and 8, and of the deviation along time of that at lag 1. A lag that a clip is too short for is its longest."""

    name = "motion3d-v1"
    dimension, minimum_frames, logits, canonical = SCALES * (len(LAGS) + 1), 2, False, False
    preparation = Preparation(size=None, kernel="none")

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"lags": list(LAGS), "scales": SCALES, "least": LEAST, "usual": USUAL}

    @property
    def fingerprint(self) -> str:
        """Of the definition: there are no weights."""
        told = f"{self.name}: log(({LEAST} + mean |difference|) / {USUAL}) at lags {LAGS} of {SCALES} scales"
        return hashlib.sha256(told.encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 15"]:
        """uint8 or float [0, 1], B T H W 3, of at least two frames. Each video by itself."""
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
