"""How close a continuation of a video is to its true future: frame by frame, and by where and when things move.

Motion masks and their overlaps follow Physics-IQ (Motamed et al. 2025, arXiv 2501.09038, section 2.3, and its published evaluation): grey
frames, smoothed, against a running mean; a pixel moves where they differ by more than 10 of 255, after an opening and a closing. The
benchmark's score also divides by the difference between two takes of one scene; these are its parts for a single take.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from sora.metrics.clips.flow import grey
from sora.metrics.clips.reconstruction import psnr, ssim

THRESHOLD = 10.0  # grey levels of 255
REMEMBERED = 0.3  # weight of each new frame in the running mean
SMOOTH, BLOCK = 5, 5  # pixels a side of the smoothing, and of opening and closing
SIGMA = 0.3 * ((SMOOTH - 1) * 0.5 - 1) + 0.8  # the sigma that image libraries derive from a Gaussian's size in pixels
HIGHER = {"psnr": True, "ssim": True, "mse": False, "spatial_iou": True, "spatiotemporal_iou": True, "weighted_spatial_iou": True}


def motion_masks(frames: UInt8[Tensor, "T H W 3"]) -> Bool[Tensor, "T H W"]:
    """Where something moves in each frame; False everywhere in the first. If the camera moves, so does everything."""
    smooth = _smoothed(grey(frames) * 255).round()
    mean, found = smooth[0].double(), [torch.zeros_like(smooth[0], dtype=torch.bool)]
    for frame in smooth[1:]:
        mean = (1 - REMEMBERED) * mean + REMEMBERED * frame
        found.append((frame - mean.round()).abs() > THRESHOLD)
    masks = torch.stack(found).float()
    for first, second in ((_eroded, _dilated), (_dilated, _eroded)):
        masks = second(first(masks))
    return masks[:, 0] > 0


def overlaps(true: Bool[Tensor, "T H W"], other: Bool[Tensor, "_ _ _"]) -> dict[str, float]:
    """Intersection over union of motion masks, in [0, 1]; 1 if nothing moves in either. spatial: of the pixels that ever move.
    spatiotemporal: of each frame, averaged. weighted_spatial: of how often each pixel moves, the sum of minima over the sum of maxima."""
    each = [_iou(one, two) for one, two in zip(true, other, strict=True)]
    one, two = true.double().mean(dim=0), other.double().mean(dim=0)
    largest = float(torch.maximum(one, two).sum())
    return {
        "spatial_iou": _iou(true.any(dim=0), other.any(dim=0)),
        "spatiotemporal_iou": sum(each) / len(each),
        "weighted_spatial_iou": float(torch.minimum(one, two).sum()) / largest if largest else 1.0,
    }


def continuation_scores(true: UInt8[Tensor, "T H W 3"], other: UInt8[Tensor, "_ _ _ 3"]) -> dict[str, float]:
    """Scores of the frames after the context: `psnr` in dB and `mse` of [0, 1] values, means over frames; `ssim` if frames are as large as
    its window; the overlaps of motion. Raises ValueError for clips of different shapes."""
    if true.shape != other.shape:
        raise ValueError(f"a true future of {tuple(true.shape)} and a continuation of {tuple(other.shape)} cannot be compared")
    found = {"psnr": float(psnr(true[None], other[None])), "mse": float(((true.double() - other.double()) / 255).square().mean())}
    if min(true.shape[1:3]) >= 11:
        found["ssim"] = float(ssim(true[None], other[None]))
    return found | overlaps(motion_masks(true), motion_masks(other))


def best(name: str, values: Float[Tensor, "n samples"]) -> Float[Tensor, "n"]:
    """For each clip, the best score of its continuations: largest or smallest, depending on the score's name."""
    return values.amax(dim=1) if HIGHER[name] else values.amin(dim=1)


def _iou(one: Tensor, two: Tensor) -> float:
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else 1.0


def _smoothed(frames: Float[Tensor, "T 1 H W"]) -> Float[Tensor, "T 1 H W"]:
    places = torch.arange(SMOOTH, device=frames.device, dtype=frames.dtype) - SMOOTH // 2
    line = torch.exp(-(places**2) / (2 * SIGMA**2))
    line, half = line / line.sum(), SMOOTH // 2
    frames = functional.pad(frames, [half] * 4, mode="reflect" if min(frames.shape[2:]) > half else "replicate")
    return functional.conv2d(functional.conv2d(frames, line[None, None, :, None]), line[None, None, None])


def _dilated(masks: Tensor) -> Tensor:
    """The maximum over each block; positions outside the frame do not count."""
    return functional.max_pool2d(masks, BLOCK, stride=1, padding=BLOCK // 2)


def _eroded(masks: Tensor) -> Tensor:
    return -functional.max_pool2d(-masks, BLOCK, stride=1, padding=BLOCK // 2)
