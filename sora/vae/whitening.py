"""Whitening: the one place where the scale of raw latents is measured.

It is measured once, after training, and lives in the VAE's buffers and so in its artefact; nobody else multiplies by a scale.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from sora.vae.vae import VideoVAE

# A channel of whitened latents outside these means another VAE's scale, or a dead or exploding channel.
LARGEST_MEAN = 0.3
SMALLEST_STD, LARGEST_STD = 0.7, 1.4


@torch.no_grad()
def measure(vae: VideoVAE, batches: Iterable[UInt8[Tensor, "_ _ _ _ 3"]]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Mean and standard deviation of each raw latent channel over all positions of all batches, in float64.

    Raises ValueError when there are no batches, or when a channel is dead or not finite.
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
    """Measure the whitening and store it in the VAE."""
    mean, std = measure(vae, batches)
    vae.shift.copy_(mean)
    vae.scale.copy_(std)


def unlike(latents: Iterable[Float[Tensor, "_ _ _ _"]]) -> list[str]:
    """The channels of some clips' latents, all taken together, that are not near mean 0 and standard deviation 1, each with its numbers."""
    values = torch.cat([rearrange(clip.double(), "c t h w -> c (t h w)") for clip in latents], dim=1)
    mean, std = values.mean(1), values.std(1, correction=0)
    bad = (mean.abs() > LARGEST_MEAN) | (std < SMALLEST_STD) | (std > LARGEST_STD) | ~std.isfinite()
    return [f"channel {c}: mean {mean[c]:.3f} std {std[c]:.3f}" for c in bad.nonzero().flatten().tolist()]
