"""The technical quality of pictures without references: sharpness, block artefacts, noise, exposure; means over a video's frames.

Metrics of steadiness in time (flickering, smoothness, warping error, consistency) improve when a video is blurred or frozen; these metrics
expose such a video. All use the luma of frames at their own size: resizing changes sharpness and moves coding blocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from sora.metrics.clips.flow import grey

BLOCK = 8  # pixels: the block of JPEG, MPEG-2, MPEG-4 and H.264's larger transform, and the stride of most video VAEs
REBLUR = 9  # pixels of the second blur, a moving average
DARK, BRIGHT = 5.0, 250.0  # luma levels beyond which a pixel counts as clipped, with room for a codec's ringing


def sharpness(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """1 - the perceptual blur of Crété et al. 2007, in [0, 1]: the share of neighbouring pixels' differences that another blur removes.

    0 where nothing differs. Noise and block borders count as sharp, so read it beside `noise_level` and `blockiness`; in nearly flat
    pictures so does rounding.
    """
    frames = _luma(videos, least=2)
    blurs = []
    for axis in (2, 3):
        side = frames.shape[axis]
        width = min(REBLUR, side - 1 + side % 2)  # odd
        sizes, pads = ((width, 1), (0, 0, width // 2, width // 2)) if axis == 2 else ((1, width), (width // 2, width // 2, 0, 0))
        again = functional.avg_pool2d(functional.pad(frames, pads, mode="replicate"), sizes, stride=1)
        before, after = frames.diff(dim=axis).abs(), again.diff(dim=axis).abs()
        lost = (before - after).clamp_min(0).sum(dim=(1, 2, 3))
        blurs.append(1 - lost / before.sum(dim=(1, 2, 3)).clamp_min(1e-6))
    return _per_video(1 - torch.maximum(*blurs), videos)


def blockiness(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """How much larger steps over the borders of 8-pixel blocks are than other steps: (border - other) / (border + other), in [-1, 1].

    About 0 for pictures that were never coded in blocks, 1 for flat blocks; the block borders of Wang, Sheikh and Bovik 2002, as a share.
    Blocks are counted from the upper left corner, so a video that was resized or cropped after coding shows nothing. Deblocking codecs
    (H.264 by default) smooth their borders away: their compression shows as lower `sharpness` and `noise_level`.
    """
    frames = _luma(videos, least=2)
    border, other = [], []
    for axis in (2, 3):
        steps = frames.diff(dim=axis).abs().mean(dim=(1, 5 - axis))  # frames, side - 1
        at = torch.arange(steps.shape[1], device=steps.device) % BLOCK == BLOCK - 1
        border.append(steps[:, at])
        other.append(steps[:, ~at])
    borders, others = torch.cat(border, dim=1), torch.cat(other, dim=1)
    if not borders.shape[1]:
        return torch.zeros(len(videos), dtype=torch.float64, device=videos.device)
    over, within = borders.mean(dim=1), others.mean(dim=1)
    return _per_video((over - within) / (over + within).clamp_min(1e-6), videos)


def noise_level(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """The standard deviation of white noise in grey levels of 255, from the residual of Immerkær 1996 by its median (Donoho 1995).

    The median ignores edges; fine texture everywhere counts as noise. 0 for frames with a side below 3.
    """
    frames = _luma(videos, least=1)
    if min(frames.shape[2:]) < 3:
        return torch.zeros(len(videos), dtype=torch.float64, device=videos.device)
    mask = frames.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    residual = functional.conv2d(frames, mask[None, None]).abs().flatten(1) / 6  # 6 is the root of the mask's sum of squares
    return _per_video(residual.median(dim=1).values / 0.6745, videos)


def brightness(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """Mean luma, in [0, 1]."""
    return _per_video(_luma(videos, least=1).mean(dim=(1, 2, 3)) / 255, videos)


def clipped(videos: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B"]:
    """Share of pixels that are nearly black or nearly white, in [0, 1], which wrong exposure causes."""
    frames = _luma(videos, least=1)
    return _per_video(((frames <= DARK) | (frames >= BRIGHT)).float().mean(dim=(1, 2, 3)), videos)


PICTURE = {
    "sharpness": sharpness,
    "blockiness": blockiness,
    "noise_level": noise_level,
    "brightness": brightness,
    "clipped": clipped,
}


def _luma(videos: Tensor, *, least: int) -> Float[Tensor, "n 1 h w"]:
    if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or not len(videos) or min(videos.shape[2:4]) < least:
        raise ValueError(
            f"videos are {videos.dtype} of shape {tuple(videos.shape)}; give uint8 (batch, frames, height, width, 3) of sides from {least}"
        )
    return 255 * grey(videos.flatten(0, 1))


def _per_video(frames: Float[Tensor, "n"], videos: Tensor) -> Float[Tensor, "B"]:
    return frames.double().unflatten(0, videos.shape[:2]).mean(dim=1)
