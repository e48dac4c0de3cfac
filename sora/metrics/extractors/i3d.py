"""The I3D network (Carreira and Zisserman 2017, figure 3): Inception-v1 with its kernels inflated in time, for RGB.

Layers have the names of published state dicts. Padding is TensorFlow's SAME, which adds an odd remainder at the end.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 400  # classes of Kinetics
MINIMUM_FRAMES = 9  # time is halved three times, rounding up, and the head pools two frames of the result
# Input channels, then the widths of: 1x1; 1x1 before 3x3, 3x3; 1x1 before 3x3, 3x3; 1x1 after pooling.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zero padding in time, rows and columns, such that each output length is the input length over the stride, rounded up."""
    pads: list[int] = []
    for length, size, step in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling; padding zeros never win, since every input is the output of a ReLU."""
    return functional.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class I3DUnit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, size: int, step: int = 1, epsilon: float) -> None:
        super().__init__()
        self.size, self.step = (size, size, size), (step, step, step)
        self.conv3d = nn.Conv3d(inputs, outputs, size, step, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv3d(pad_same(x, self.size, self.step))))


class Mixed(nn.Module):
    """Four branches side by side, concatenated."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, epsilon: float) -> None:
        super().__init__()
        one, before_two, two, before_three, three, four = widths
        self.b0 = I3DUnit(inputs, one, size=1, epsilon=epsilon)
        self.b1a = I3DUnit(inputs, before_two, size=1, epsilon=epsilon)
        self.b1b = I3DUnit(before_two, two, size=3, epsilon=epsilon)
        self.b2a = I3DUnit(inputs, before_three, size=1, epsilon=epsilon)
        self.b2b = I3DUnit(before_three, three, size=3, epsilon=epsilon)
        self.b3b = I3DUnit(inputs, four, size=1, epsilon=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3DHead(nn.Module):
    """Class logits at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class I3D(nn.Module):
    """The I3D network: videos (B, 3, T, 224, 224) in [-1, 1], T at least 9, to the 400 logits before the softmax, a mean over time.

    epsilon: of batch normalisation; 1e-3 in the TensorFlow original, 1e-5 in the ports that read the state dict.
    """

    def __init__(self, *, epsilon: float) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = I3DUnit(3, 64, size=7, step=2, epsilon=epsilon)
        self.Conv3d_2b_1x1 = I3DUnit(64, 64, size=1, epsilon=epsilon)
        self.Conv3d_2c_3x3 = I3DUnit(64, 192, size=3, epsilon=epsilon)
        for name, (inputs, widths) in MIXED.items():
            self.add_module(name, Mixed(inputs, widths, epsilon=epsilon))
        self.logits = I3DHead()

    def forward(self, videos: Float[Tensor, "B 3 T 224 224"]) -> Float[Tensor, "B 400"]:
        x = pool(self.Conv3d_1a_7x7(videos), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = self._mixed(x, "3")
        x = self._mixed(pool(x, (3, 3, 3), (2, 2, 2)), "4")
        x = self._mixed(pool(x, (2, 2, 2), (2, 2, 2)), "5")
        return self.logits(functional.avg_pool3d(x, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))

    def _mixed(self, x: Tensor, stage: str) -> Tensor:
        for name in MIXED:
            if name.startswith(f"Mixed_{stage}"):
                x = self.get_submodule(name)(x)
        return x
