"""PSNR and SSIM of reconstructions on uint8 frames: a mean over frames for each video, then over videos.

Conventions differ between papers, so they are part of the names: `psnr` averages the PSNR of frames (as most video papers do),
`psnr_pooled` takes the PSNR of a video's mean squared error, which is never larger.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from sora.metrics.metric import VideoMetric

SUMS = ("psnr", "psnr_pooled", "ssim", "temporal_psnr", "videos", "windows", "moving", "exact_frames")
CAP = 100.0  # dB given to a frame without any error, whose PSNR is infinite


def psnr(original: UInt8[Tensor, "B T H W 3"], other: UInt8[Tensor, "_ _ _ _ 3"]) -> Float[Tensor, "B"]:
    """PSNR in dB, a mean over each video's frames; frames without any error count as CAP."""
    return _decibel(_squared_error(original, other).mean(dim=(2, 3, 4))).mean(dim=1)


def psnr_pooled(original: UInt8[Tensor, "B T H W 3"], other: UInt8[Tensor, "_ _ _ _ 3"]) -> Float[Tensor, "B"]:
    """PSNR in dB of each video's mean squared error."""
    return _decibel(_squared_error(original, other).mean(dim=(1, 2, 3, 4)))


def temporal_psnr(original: UInt8[Tensor, "B T H W 3"], other: UInt8[Tensor, "_ _ _ _ 3"]) -> Float[Tensor, "B"]:
    """PSNR in dB of the differences between neighbouring frames, which shows flicker that per-frame errors hide. NaN for images."""
    _check(original, other)
    if original.shape[1] < 2:
        return torch.full((len(original),), torch.nan, dtype=torch.float64)
    change = (original.double().diff(dim=1) - other.double().diff(dim=1)) / 255
    return _decibel(change.square().mean(dim=(2, 3, 4))).mean(dim=1)


def ssim(original: UInt8[Tensor, "B T H W 3"], other: UInt8[Tensor, "_ _ _ _ 3"]) -> Float[Tensor, "B"]:
    """Structural similarity (Wang et al. 2004): gaussian 11x11 of sigma 1.5, valid windows, each channel apart, C1 = 0.01², C2 = 0.03²."""
    _check(original, other)
    height, width = original.shape[2:4]
    if min(height, width) < 11:
        raise ValueError(f"frames of {width}x{height} are smaller than SSIM's window of 11x11")
    values = []
    for one, two in zip(original, other, strict=True):
        x, y = (rearrange(video, "t h w c -> (t c) 1 h w").to(torch.float64) / 255 for video in (one, two))
        mean_x, mean_y = _window(x), _window(y)
        var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
        covariance = _window(x * y) - mean_x * mean_y
        c1, c2 = 0.01**2, 0.03**2
        map_ = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        values.append(map_.mean())
    return torch.stack(values)


class Reconstruction(VideoMetric):
    """Means of PSNR and SSIM over videos of any sizes, and the number of videos."""

    psnr_sum: Tensor
    psnr_pooled_sum: Tensor
    ssim_sum: Tensor
    temporal_psnr_sum: Tensor
    videos_sum: Tensor
    windows_sum: Tensor
    moving_sum: Tensor
    exact_frames_sum: Tensor
    exact = tuple(f"{name}_sum" for name in SUMS)
    undrawn = ("videos", "exact_frames")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in SUMS:
            self.add_state(f"{name}_sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, original: UInt8[Tensor, "B T H W 3"], other: UInt8[Tensor, "_ _ _ _ 3"]) -> None:
        """Add videos. Frames smaller than SSIM's window, and single images, count only for the scores that are defined on them."""
        self.psnr_sum += psnr(original, other).sum()
        self.psnr_pooled_sum += psnr_pooled(original, other).sum()
        self.exact_frames_sum += (_squared_error(original, other).amax(dim=(2, 3, 4)) == 0).sum()
        self.videos_sum += len(original)
        if min(original.shape[2:4]) >= 11:
            self.ssim_sum += ssim(original, other).sum()
            self.windows_sum += len(original)
        if original.shape[1] > 1:
            self.temporal_psnr_sum += temporal_psnr(original, other).sum()
            self.moving_sum += len(original)

    def compute(self) -> dict[str, float]:
        if self.videos_sum == 0:
            raise ValueError("no video was given to the reconstruction metric")
        found = {
            "psnr": float(self.psnr_sum / self.videos_sum),
            "psnr_pooled": float(self.psnr_pooled_sum / self.videos_sum),
            "videos": float(self.videos_sum),
            "exact_frames": float(self.exact_frames_sum),
        }
        if self.windows_sum > 0:
            found["ssim"] = float(self.ssim_sum / self.windows_sum)
        if self.moving_sum > 0:
            found["temporal_psnr"] = float(self.temporal_psnr_sum / self.moving_sum)
        return found


def _check(original: Tensor, other: Tensor) -> None:
    if original.shape != other.shape:
        raise ValueError(f"an original of {tuple(original.shape)} and a reconstruction of {tuple(other.shape)} cannot be compared")
    if original.dtype != torch.uint8 or other.dtype != torch.uint8:
        raise ValueError(f"frames are {original.dtype} and {other.dtype}; reconstruction is measured on uint8 frames")


def _squared_error(original: Tensor, other: Tensor) -> Tensor:
    _check(original, other)
    return ((original.double() - other.double()) / 255).square()


def _decibel(error: Tensor) -> Tensor:
    return (-10 * torch.log10(error)).clamp(max=CAP)


def _window(x: Tensor) -> Tensor:
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    line = line / line.sum()
    return functional.conv2d(functional.conv2d(x, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))
