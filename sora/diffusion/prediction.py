"""What a network may predict, and the one function that turns any prediction into any other.

A prediction is a linear form of data and noise: p = c0(t) x0 + c1(t) eps. Its kind is a function giving (c0, c1) on a path, so that with
x_t = alpha x0 + sigma eps there are two equations in two unknowns, whatever the kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path, like

Prediction = Callable[[Path, Tensor], tuple[Tensor, Tensor]]


def velocity_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """d x_t / d t: what samplers integrate."""
    return path.d_alpha(t), path.d_sigma(t)


def noise_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """eps (Ho et al. 2020). Says nothing about the data where alpha is 0, so it cannot start from pure noise."""
    return torch.zeros_like(t), torch.ones_like(t)


def clean_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """x0. Says nothing about the noise where sigma is 0."""
    return torch.ones_like(t), torch.zeros_like(t)


def v_prediction(path: Path, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""
    return -path.sigma(t), path.alpha(t)


def determinant(path: Path, t: Float[Tensor, "..."], kind: Prediction) -> Float[Tensor, "..."]:
    """Of the system (x_t, prediction) in (x0, eps). At 0 the prediction is only another copy of x_t."""
    c0, c1 = kind(path, t)
    return path.alpha(t) * c1 - path.sigma(t) * c0


def solve(
    prediction: Float[Tensor, "..."], x_t: Float[Tensor, "..."], t: Float[Tensor, "..."], kind: Prediction, *, path: Path
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The (x0, eps) that a prediction means. Infinite where the prediction is singular: see `check_levels`."""
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
    """A prediction of kind `source` at (x_t, t) as one of kind `target`. t: a prefix of x_t's shape."""
    if source is target:
        return prediction
    x0, eps = solve(prediction, x_t, t, source, path=path)
    c0, c1 = (like(c, x_t) for c in target(path, t))
    return c0 * x0 + c1 * eps


def check_levels(levels: Float[Tensor, "..."], kind: Prediction, *, path: Path, least: float = 1e-3) -> None:
    """Refuse levels at which a network's prediction cannot be turned into a velocity. For host tensors: it looks at values."""
    det = determinant(path, levels, kind).abs()
    if bool((det < least).any()):
        worst = float(levels.flatten()[det.flatten().argmin()])
        name = getattr(kind, "__name__", str(kind)).removesuffix("_prediction")
        raise ValueError(
            f"a network that predicts {name} cannot be sampled at noise level {worst:g} on {path}; start below it, with first=0.98, "
            "or train with the velocity prediction, objective=velocity"
        )
