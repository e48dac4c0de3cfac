"""Weights of the squared error by noise level, for any path and any kind of prediction."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path
from sora.diffusion.prediction import Prediction, determinant

Weighting = Callable[[Tensor, Path, Prediction], Tensor]


def constant(t: Float[Tensor, "..."], path: Path, kind: Prediction) -> Float[Tensor, "..."]:
    """The plain mean-squared error of what is predicted."""
    return torch.ones_like(t)


def min_snr(t: Float[Tensor, "..."], path: Path, kind: Prediction, *, gamma: float) -> Float[Tensor, "..."]:
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023), written for the prediction at hand.

    An error e of the prediction is an error sigma/det · e of x0, so the weight is min(alpha², gamma·sigma²) / det². Both ratios have finite
    limits, taken where numerator and determinant are the same number: for a noise prediction at zero signal the weight is 1.
    """
    det = determinant(path, t, kind)
    return torch.minimum(_ratio(path.alpha(t), det) ** 2, gamma * _ratio(path.sigma(t), det) ** 2)


def cosine_map(t: Float[Tensor, "..."], path: Path, kind: Prediction) -> Float[Tensor, "..."]:
    """2 / (pi (1 - 2t + 2t²)): levels of a cosine schedule on the straight path (Esser et al. 2024, eq. 21)."""
    return 2 / (pi * (1 - 2 * t + 2 * t**2))


def _ratio(numerator: Tensor, det: Tensor) -> Tensor:
    same = numerator.abs() == det.abs()
    return torch.where(same, torch.ones_like(det), numerator.abs() / torch.where(same, torch.ones_like(det), det.abs()))
