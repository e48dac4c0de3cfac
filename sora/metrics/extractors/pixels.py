"""Preprocessing of decoded frames for a network: size, kernel, crop and range. These change scores, so they are recorded.

Four kernels, since published scores were measured with each of the first three:
  half_pixel   bilinear, centres of pixels aligned, no prefilter: PyTorch's, and that of the TorchScript I3D
  legacy       bilinear on the grid of TensorFlow 1, whose first pixels' corners are aligned: that of the first FVD code
  antialiased  bilinear with a prefilter where frames shrink, as image libraries do it
  none         no resizing: frames must have the network's size, if it has a fixed one
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def half_pixel(frames: Float[Tensor, "n c _ _"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Bilinear resizing in which output pixel i reads input position (i + 1/2) · scale - 1/2, clamped to the frame."""
    return functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)


def antialiased(frames: Float[Tensor, "n c _ _"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Bilinear resizing like `half_pixel`, with the triangle kernel widened by the scale where frames shrink."""
    return functional.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)


def legacy(frames: Float[Tensor, "n c _ _"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Bilinear resizing in which output pixel i reads input position i · scale, clamped to the last row and column: it shifts the image."""
    for axis, wanted in ((2, size[0]), (3, size[1])):
        given = frames.shape[axis]
        places = torch.arange(wanted, device=frames.device, dtype=torch.float64) * (given / wanted)
        low = places.floor().long()
        high = (low + 1).clamp(max=given - 1)
        share = (places - low).to(frames.dtype)
        share = share[:, None] if axis == 2 else share
        frames = frames.index_select(axis, low) * (1 - share) + frames.index_select(axis, high) * share
    return frames


def unresized(frames: Float[Tensor, "n c _ _"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """The frames unchanged; ValueError if they have another size."""
    if tuple(frames.shape[2:]) != size:
        height, width = frames.shape[2:]
        raise ValueError(
            f"frames are {width}x{height} and the extractor takes {size[1]}x{size[0]}; extractor.kernel=none resizes nothing, "
            "choose half_pixel, legacy or antialiased"
        )
    return frames


KERNELS = {"half_pixel": half_pixel, "legacy": legacy, "antialiased": antialiased, "none": unresized}


@dataclass(frozen=True)
class Preparation:
    """Preprocessing of videos for a network. size: its (height, width), or None for any. crop: resize the shorter side and crop the centre,
    else stretch both sides. low, high: values of black and white before `mean` is subtracted and `deviation` divided by, one per channel.
    """

    size: tuple[int, int] | None
    kernel: str
    crop: bool = False
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"extractor.kernel={self.kernel}: choose from {', '.join(KERNELS)}")
        if len(self.mean) != 3 or len(self.deviation) != 3 or not all(self.deviation):
            raise ValueError(f"extractor mean {self.mean} and deviation {self.deviation} need three numbers each, deviations not 0")

    def __call__(self, videos: Tensor) -> Float[Tensor, "B 3 T h w"]:
        """Preprocess uint8 or float [0, 1] videos, B T H W 3."""
        if videos.ndim != 5 or videos.shape[-1] != 3:
            raise ValueError(f"videos of shape {tuple(videos.shape)}; an extractor takes (batch, frames, height, width, 3)")
        scale = 255 if videos.dtype == torch.uint8 else 1
        batch, count = videos.shape[:2]
        frames = videos.permute(0, 1, 4, 2, 3).flatten(0, 1).float() * ((self.high - self.low) / scale) + self.low
        frames = self._sized(frames)
        mean, deviation = (frames.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        frames = (frames - mean) / deviation
        return frames.unflatten(0, (batch, count)).transpose(1, 2)

    def _sized(self, frames: Tensor) -> Tensor:
        if self.size is None:
            return frames
        kernel = KERNELS[self.kernel]
        if not self.crop:
            return kernel(frames, self.size) if tuple(frames.shape[2:]) != self.size else frames
        height, width = frames.shape[2:]
        scale = max(self.size[0] / height, self.size[1] / width)
        resized = (max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale)))
        frames = kernel(frames, resized) if tuple(frames.shape[2:]) != resized else frames
        top, left = (resized[0] - self.size[0]) // 2, (resized[1] - self.size[1]) // 2
        return frames[:, :, top : top + self.size[0], left : left + self.size[1]]
