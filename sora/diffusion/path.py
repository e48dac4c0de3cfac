"""Paths between data and noise, x_t = alpha(t) x0 + sigma(t) eps: t = 0 is data, t = 1 is noise.

A path is four functions of the level. Everything else (mixing, velocities, conversions) is written once, for all of them.
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
    """The two coefficients of a path and their derivatives by the level t, each elementwise."""

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
        # sin of the rest, not cos: exactly 0 at t = 1, where cos(pi/2) rounds to 6e-17.
        return torch.sin((1 - t) * (pi / 2))

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sin(t * (pi / 2))

    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -(pi / 2) * self.sigma(t)

    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (pi / 2) * self.alpha(t)


@dataclass(frozen=True, kw_only=True)
class EDM:
    """The path of Karras et al. (2022), scaled to unit variance as its network sees it (c_in · x, for data of variance one).

    s(t) = sigma_max · t^rho is their eq. 5 with sigma_min = 0, so that level 0 is data exactly; alpha = 1 / sqrt(1 + s²) and
    sigma = s · alpha. On this path their network F is minus the v prediction, and their loss is the plain mean-squared error of v.
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
    """Append axes to `t` until it broadcasts against `x`; its shape must be a prefix of x's (a single number always is)."""
    if tuple(t.shape) != tuple(x.shape[: t.ndim]):
        raise ValueError(f"noise levels of shape {tuple(t.shape)} do not lead {tuple(x.shape)}; give one, or one for each leading index")
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def mix(path: Path, x0: Float[Tensor, "..."], eps: Float[Tensor, "..."], t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x_t on the path. x0, eps: same shape. t: a prefix of that shape, in [0, 1]."""
    _same(x0, eps)
    return like(path.alpha(t), x0) * x0 + like(path.sigma(t), x0) * eps


def velocity(path: Path, x0: Float[Tensor, "..."], eps: Float[Tensor, "..."], t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """d x_t / d t on the path; eps - x0 on the straight one."""
    _same(x0, eps)
    return like(path.d_alpha(t), x0) * x0 + like(path.d_sigma(t), x0) * eps


def _same(x0: Tensor, eps: Tensor) -> None:
    if x0.shape != eps.shape:
        raise ValueError(f"data of shape {tuple(x0.shape)} and noise of shape {tuple(eps.shape)} must have one shape")
