"""Paths between data and noise, x_t = alpha(t) x0 + sigma(t) eps: t = 0 is data, t = 1 is noise.

A path is four functions of the noise level t. Mixing, velocities and conversions are written once, for all paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@runtime_checkable
class Path(Protocol):
    """The coefficients alpha and sigma of a path and their derivatives with respect to the noise level t, all elementwise."""

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...
    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...
    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...
    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...


@dataclass(frozen=True)
class Straight:
    """x_t = (1 - t) x0 + t eps: rectified flow (Liu et al. 2023), optimal-transport flow matching (Lipman et al. 2023)."""

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return 1 - t

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return t

    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -torch.ones_like(t)

    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.ones_like(t)


@dataclass(frozen=True)
class VariancePreserving:
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps: the cosine schedule (Nichol and Dhariwal 2021), alpha² + sigma² = 1."""

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        # sin(pi/2 - x) and not cos(x), to be exactly 0 at t = 1: cos(pi/2) rounds to 6e-17.
        return torch.sin((1 - t) * (pi / 2))

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sin(t * (pi / 2))

    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -(pi / 2) * self.sigma(t)

    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (pi / 2) * self.alpha(t)


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Path of Karras et al. (2022), scaled to unit variance for data of variance 1, as their network's input c_in · x is.

    s(t) = sigma_max · t^rho is their eq. 5 with sigma_min = 0, so that level 0 is exactly data; alpha = 1 / sqrt(1 + s²) and
    sigma = s · alpha. On this path their network F equals minus the v prediction, and their loss is the mean squared error of v.
    """

    sigma_max: float
    rho: float

    def _scale(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (1 + self._scale(t) ** 2) ** -0.5

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        scale = self._scale(t)
        return scale * (1 + scale**2) ** -0.5

    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        scale = self._scale(t)
        return -scale * (1 + scale**2) ** -1.5 * self._slope(t)

    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (1 + self._scale(t) ** 2) ** -1.5 * self._slope(t)

    def _slope(self, t: Tensor) -> Tensor:
        return self.sigma_max * self.rho * t ** (self.rho - 1)


def like(t: Shaped[Tensor, "..."], x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Append axes of size 1 to `t` so that it broadcasts against `x`. The shape of t must be a prefix of x's shape, or ()."""
    if tuple(t.shape) != tuple(x.shape[: t.ndim]):
        raise ValueError(f"noise levels of shape {tuple(t.shape)} do not lead {tuple(x.shape)}; give one, or one for each leading index")
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def mix(path: Path, x0: Float[Tensor, "..."], eps: Float[Tensor, "..."], t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x_t = alpha(t) x0 + sigma(t) eps. x0 and eps have one shape; t, in [0, 1], has a prefix of it as its shape."""
    _same(x0, eps)
    return like(path.alpha(t), x0) * x0 + like(path.sigma(t), x0) * eps


def velocity(path: Path, x0: Float[Tensor, "..."], eps: Float[Tensor, "..."], t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Velocity d x_t / d t on the path; eps - x0 on the straight path. Shapes as in `mix`."""
    _same(x0, eps)
    return like(path.d_alpha(t), x0) * x0 + like(path.d_sigma(t), x0) * eps


def _same(x0: Tensor, eps: Tensor) -> None:
    if x0.shape != eps.shape:
        raise ValueError(f"data of shape {tuple(x0.shape)} and noise of shape {tuple(eps.shape)} must have one shape")
