"""Histograms of the velocity and acceleration of a video's pixels: features for an FVMD-like distance without a trained tracker.

The Fréchet video motion distance (Liu et al. 2024, arXiv 2407.16124, section 3) tracks points with PIPs++, takes first and second
differences of their positions as velocity and acceleration, and compares histograms of their directions, weighted by magnitude. Here both
come from the optical flow of `clips.flow` instead, so values are not published FVMD, and never called so. Unlike `motion3d` these features
have the direction of motion.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.clips.flow import grey, optical_flow, warp
from sora.metrics.extractors.pixels import Preparation

ANGLES = 8  # directions, as in the paper
# Bounds of magnitude, in thousandths of the shorter side a frame (velocity), or a frame each frame (acceleration).
BOUNDS = (2.0, 5.0, 10.0, 20.0, 40.0)
LENGTHS = len(BOUNDS) + 1


class FlowHistograms:
    """28 numbers: for velocity, then for acceleration, the mean over pixels and frames of log(1 + magnitude) in each of eight directions,
    shared linearly between the two nearest, and the share of pixels in each of six classes of magnitude."""

    name = "flow-histograms-v1"
    dimension, minimum_frames, logits, canonical = 2 * (ANGLES + LENGTHS), 3, False, False
    preparation = Preparation(size=None, kernel="none")

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"directions": ANGLES, "bounds": list(BOUNDS)}

    @property
    def fingerprint(self) -> str:
        """A hash of the definition, since there are no weights."""
        told = f"{self.name}: {ANGLES} directions, {BOUNDS} thousandths, pyramid of local least squares"
        return hashlib.sha256(told.encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 28"]:
        """Features of uint8 or float [0, 1] videos, B T H W 3, of at least three frames, each video by itself."""
        return torch.stack([self._one(video) for video in videos])

    def _one(self, video: Tensor) -> Tensor:
        frames = grey(video)
        velocity = optical_flow(frames[:-1], frames[1:])
        # Along each pixel's path: the velocity at its next position minus its present one.
        acceleration = warp(velocity[1:], velocity[:-1]) - velocity[:-1]
        scale = 1000 / min(video.shape[1:3])
        return torch.cat([histogram(velocity * scale), histogram(acceleration * scale)])


def histogram(vectors: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "d"]:
    """ANGLES numbers for directions, then LENGTHS for magnitudes. vectors: in thousandths of the shorter side."""
    across, down = vectors[:, 0].flatten(), vectors[:, 1].flatten()
    length = torch.sqrt(across**2 + down**2)
    turn = torch.atan2(down, across) / (2 * math.pi) * ANGLES % ANGLES
    first = turn.floor()
    share, low, weight = turn - first, first.long() % ANGLES, torch.log1p(length)
    directions = vectors.new_zeros(ANGLES)
    directions.index_add_(0, low, weight * (1 - share))
    directions.index_add_(0, (low + 1) % ANGLES, weight * share)
    classes = torch.bucketize(length, vectors.new_tensor(BOUNDS))
    return torch.cat([directions / len(length), torch.bincount(classes, minlength=LENGTHS).to(length) / len(length)])
