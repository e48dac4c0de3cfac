"""Kinds of network predictions (velocity, noise, clean data, v), and the conversion between any two of them.

A prediction is a linear combination of data and noise: p = c0(t) x0 + c1(t) eps. A kind is a function that returns (c0, c1) on a path.
Together with x_t = alpha x0 + sigma eps this gives two linear equations in the two unknowns x0 and eps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path, like

Prediction = Callable[[Path, Tensor], tuple[Tensor, Tensor]]


def velocity_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Coefficients of the velocity d x_t / d t, which samplers integrate."""
    return path.d_alpha(t), path.d_sigma(t)


def noise_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Coefficients of eps (Ho et al. 2020). Singular where alpha is 0, so sampling cannot start from pure noise."""
    return torch.zeros_like(t), torch.ones_like(t)


def clean_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Coefficients of x0. Singular where sigma is 0."""
    return torch.ones_like(t), torch.zeros_like(t)


def v_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Coefficients of v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""
    return -path.sigma(t), path.alpha(t)


def determinant(path: Path, t: Float[Tensor, "..."], kind: Prediction) -> Float[Tensor, "..."]:
    """Determinant of the linear map from (x0, eps) to (x_t, prediction). Where it is 0 the prediction is a multiple of x_t."""
    c0, c1 = kind(path, t)
    return path.alpha(t) * c1 - path.sigma(t) * c0


def solve(
    prediction: Float[Tensor, "..."], x_t: Float[Tensor, "..."], t: Float[Tensor, "..."], kind: Prediction, *, path: Path
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Solve for (x0, eps), given x_t and a prediction. Not finite where the determinant is 0: see `check_levels`."""
    c0, c1 = (like(c, x_t) for c in kind(path, t))
    alpha, sigma, det = like(path.alpha(t), x_t), like(path.sigma(t), x_t), like(determinant(path, t, kind), x_t)
    return (c1 * x_t - sigma * prediction) / det, (alpha * prediction - c0 * x_t) / det


def convert(
    prediction: Float[Tensor, "..."],
    x_t: Float[Tensor, "..."],
    t: Float[Tensor, "..."],
    source: Prediction,
    target: Prediction,
    *,
    path: Path,
) -> Float[Tensor, "..."]:
    """Convert a prediction at (x_t, t) from kind `source` to kind `target`. The shape of t is a prefix of x_t's shape."""
    if source is target:
        return prediction
    x0, eps = solve(prediction, x_t, t, source, path=path)
    c0, c1 = (like(c, x_t) for c in target(path, t))
    return c0 * x0 + c1 * eps


def check_levels(levels: Float[Tensor, "..."], kind: Prediction, *, path: Path, least: float = 1e-3) -> None:
    """Raise ValueError if a prediction gives no velocity at a level (|determinant| < least). levels: on the CPU, since values are read."""
    det = determinant(path, levels, kind).abs()
    if bool((det < least).any()):
        worst = float(levels.flatten()[det.flatten().argmin()])
        name = getattr(kind, "__name__", str(kind)).removesuffix("_prediction")
        raise ValueError(
            f"a network that predicts {name} cannot be sampled at noise level {worst:g} on {path}; "
            f"{'start below it, with first=0.98, or ' if worst > 0.5 else ''}train with the velocity prediction, objective=velocity"
        )
