"""Weights of the squared error as functions of the noise level, for any path and any kind of prediction."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path
from sora.diffusion.prediction import Prediction, determinant, velocity_prediction

Weighting = Callable[[Tensor, Path, Prediction], Tensor]


def constant_weight(t: Float[Tensor, "..."], path: Path, kind: Prediction) -> Float[Tensor, "..."]:
    """Weight 1 at every level: the mean squared error of the prediction itself."""
    return torch.ones_like(t)


def min_snr_weight(t: Float[Tensor, "..."], path: Path, kind: Prediction, *, gamma: float) -> Float[Tensor, "..."]:
    """Min-SNR weight: min(SNR, gamma) on the error of x0 (Hang et al. 2023), converted to the error of prediction `kind`.

    An error e of the prediction is an error sigma/det · e of x0, so the weight is min(alpha², gamma·sigma²) / det². Where numerator and
    determinant are equal, 0 / 0 included, their ratio is taken as 1: for a noise prediction at alpha = 0 the weight is 1.
    """
    det = determinant(path, t, kind)
    return torch.minimum(_ratio(path.alpha(t), det) ** 2, gamma * _ratio(path.sigma(t), det) ** 2)


def cosine_map_weight(t: Float[Tensor, "..."], path: Path, kind: Prediction) -> Float[Tensor, "..."]:
    """Weight 2 / (pi (1 - 2t + 2t²)), the density of CosMap: a cosine schedule on the straight path (Esser et al. 2024, eq. 21)."""
    return 2 / (pi * (1 - 2 * t + 2 * t**2))


def _ratio(numerator: Tensor, det: Tensor) -> Tensor:
    same = numerator.abs() == det.abs()
    return torch.where(same, torch.ones_like(det), numerator.abs() / torch.where(same, torch.ones_like(det), det.abs()))


def velocity_weight(t: Float[Tensor, "..."], path: Path, kind: Prediction, *, most: float) -> Float[Tensor, "..."]:
    """Weight that turns the squared error of the prediction into that of the velocity, clamped to `most` (Li and He 2025, table 1).

    An error e of the prediction is an error e · det(velocity) / det(kind) of the velocity. For a clean prediction on the straight path the
    weight is 1/t², which is unbounded for small t.
    """
    return (determinant(path, t, velocity_prediction) / determinant(path, t, kind)).square().nan_to_num(posinf=most).clamp(max=most)
