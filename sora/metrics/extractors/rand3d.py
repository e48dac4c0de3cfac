"""Features of videos from a seeded random network of three 3-D convolutions: no weights to download, the same on every machine.

They rank noise, blur, compression and colour of real clips by severity. They hardly see motion: frozen real clips score about like
undamaged ones (docs/ladders.md), so a distance over them is one of appearance; read `motion3d` beside it. They are no substitute for a
trained network, and a score over them is comparable only with itself. So every key has the name `rand3d-v1`, and it is never called FVD.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sora.metrics.extractors.pixels import Preparation

VERSION_1 = "71f497f15edc53a0"  # the beginning of seed 0's fingerprint; other weights have other names


class Random3D(nn.Module):
    """Three convolutions 3x3x3 of stride 2 with zero-mean kernels; mean and standard deviation of each layer's channels, 224 numbers."""

    minimum_frames = 1
    widths = (3, 16, 32, 64)
    dimension = 2 * (16 + 32 + 64)
    logits = False
    canonical = False
    settings: dict[str, Any] = {}
    preparation = Preparation(size=None, kernel="none", low=-1.0, high=1.0)

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        # PCG64, not torch: numpy promises a stable bit stream, torch does not.
        draw = np.random.Generator(np.random.PCG64(seed))
        digest = hashlib.sha256()
        kernels = []
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            kernel = draw.standard_normal((outputs, inputs, 3, 3, 3))
            kernel -= kernel.mean(axis=(1, 2, 3, 4), keepdims=True)
            kernel *= (2 / (1 + 0.1**2) / (inputs * 27)) ** 0.5
            kernel = kernel.astype(np.float32)
            digest.update(kernel.tobytes())
            # from numpy, so on the CPU whatever torch's default device is
            kernels.append(nn.Parameter(torch.from_numpy(kernel), requires_grad=False))
        self.kernels = nn.ParameterList(kernels)
        self.fingerprint = digest.hexdigest()
        self.name = "rand3d-v1" if self.fingerprint.startswith(VERSION_1) else f"rand3d-{self.fingerprint[:8]}"

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Float[Tensor, "B D"]:
        """Features of uint8 or float [0, 1] videos, B T H W 3, each by itself: the result does not depend on the batch."""
        self.to(videos.device)
        with torch.autocast(videos.device.type, enabled=False):
            return torch.cat([self._one(video) for video in videos])

    def _one(self, video: Tensor) -> Tensor:
        x = self.preparation(video[None])
        pooled = []
        for kernel in self.kernels:
            x = functional.leaky_relu(functional.conv3d(x, kernel, stride=2, padding=1), 0.1)
            flat = x.flatten(2)
            pooled += [flat.mean(dim=2), flat.std(dim=2, unbiased=False)]
        return torch.cat(pooled, dim=1)
