"""Whitening: measure the mean and standard deviation of each channel of the raw latents, and store them in the VAE.

They are measured once, after training, and saved with the VAE as buffers. All other code sees whitened latents and applies no scale.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from sora.vae.vae import VideoVAE

# Beyond these bounds, latents were whitened with the statistics of another VAE, or a channel is dead or exploding.
LARGEST_MEAN = 0.3
SMALLEST_STD, LARGEST_STD = 0.7, 1.4


@torch.no_grad()
def measure(vae: VideoVAE, batches: Iterable[UInt8[Tensor, "_ _ _ _ 3"]]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Mean and standard deviation of each raw latent channel over all positions of all batches, accumulated in float64.

    Raises ValueError if there are no batches, or if a channel is dead (constant) or not finite.
    """
    count, total, squares = 0, torch.zeros(vae.latent_channels).double(), torch.zeros(vae.latent_channels).double()
    for frames in batches:
        raw = vae.posterior(frames.to(vae.shift.device)).mean.double().cpu()
        count += raw[:, 0].numel()
        total += reduce(raw, "b c t h w -> c", "sum")
        squares += reduce(raw.square(), "b c t h w -> c", "sum")
    if not count:
        raise ValueError("whitening needs at least one batch of frames; the dataset gave none")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    bad = [channel for channel in range(len(std)) if not (std[channel] > 1e-4 and mean[channel].isfinite())]
    if bad:
        numbers = [round(float(std[channel]), 6) for channel in bad]
        raise ValueError(f"latent channels {bad} are dead or not finite (std {numbers}); train longer or lower objective.kl")
    return mean.float(), std.float()


def whiten(vae: VideoVAE, batches: Iterable[UInt8[Tensor, "_ _ _ _ 3"]]) -> None:
    """Measure mean and standard deviation on `batches`, and store them in the VAE's buffers `shift` and `scale`."""
    mean, std = measure(vae, batches)
    vae.shift.copy_(mean)
    vae.scale.copy_(std)


def unlike(latents: Iterable[Float[Tensor, "_ _ _ _"]]) -> list[str]:
    """Describe each channel whose mean or standard deviation, over all clips together, is not near 0 or 1."""
    values = torch.cat([rearrange(clip.double(), "c t h w -> c (t h w)") for clip in latents], dim=1)
    mean, std = values.mean(1), values.std(1, correction=0)
    bad = (mean.abs() > LARGEST_MEAN) | (std < SMALLEST_STD) | (std > LARGEST_STD) | ~std.isfinite()
    return [f"channel {c}: mean {mean[c]:.3f} std {std[c]:.3f}" for c in bad.nonzero().flatten().tolist()]
