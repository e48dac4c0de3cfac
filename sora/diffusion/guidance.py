"""Classifier-free guidance (Ho and Salimans 2022): combines a conditional and an unconditional prediction, outside the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sora.diffusion.path import like
from sora.diffusion.samplers import Predict


def guide(
    conditional: Predict,
    unconditional: Predict,
    *,
    scale: float,
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    clips: Int[Tensor, "N"] | None = None,
) -> Predict:
    """Guided prediction u + scale · (c - u); at scale 1 it is `conditional`, and `unconditional` is never called.

    interval: guide only at noise levels low < t <= high (Kynkäänniemi et al. 2024); elsewhere the prediction is the conditional one.
    rescale: in [0, 1]. At 1 each clip's guided prediction gets the standard deviation of its conditional prediction; smaller values
    interpolate between the two (Lin et al. 2023, eqs. 15-16).
    clips: (N,), the clip that each row of x belongs to; None if each row is a clip.
    """
    if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"guidance.interval={list(interval)} must be two noise levels, low < high, within [0, 1]")
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance.rescale={rescale} must lie in [0, 1]")
    if scale == 1:
        return conditional

    def guided(x: Tensor, t: Tensor) -> Tensor:
        inside = torch.ones_like(t, dtype=torch.bool) if interval is None else (t > interval[0]) & (t <= interval[1])
        positive = conditional(x, t)
        if not bool(inside.any()):
            return positive
        negative = unconditional(x, t)
        result = negative + scale * (positive - negative)
        if rescale > 0:
            index = torch.arange(len(x), device=x.device) if clips is None else clips
            ratio = spread(positive, index) / spread(result, index).clamp_min(torch.finfo(x.dtype).tiny)
            result = like((rescale * ratio + (1 - rescale))[index], result) * result
        return torch.where(like(inside, x), result, positive)

    return guided


def spread(x: Float[Tensor, "N ..."], clips: Int[Tensor, "N"]) -> Float[Tensor, "G"]:
    """Standard deviation over all values of each clip. clips: the clip that each row of x belongs to."""
    rows = x.reshape(len(x), -1)
    groups = int(clips.max()) + 1
    zero = torch.zeros(groups, dtype=x.dtype, device=x.device)
    count = zero.index_add(0, clips, torch.full_like(rows[:, 0], rows.shape[1])).clamp_min(1)
    mean = zero.index_add(0, clips, rows.sum(1)) / count
    square = zero.index_add(0, clips, ((rows - mean[clips, None]) ** 2).sum(1))
    return (square / count).sqrt()
