"""Densities of noise levels, each given by its quantile function, which maps a uniform draw in (0, 1) to a level in [0, 1].

The caller makes the uniform draws, so counter-based, stratified and low-discrepancy draws work with every density.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Density(Protocol):
    """Density of noise levels; `quantile` is elementwise and increasing on (0, 1)."""

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]: ...


@dataclass(frozen=True)
class Uniform:
    """Uniform density on (0, 1)."""

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return u


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """Logit-normal density: logit(t) ~ N(mean, std²) (Esser et al. 2024, eq. 19). A larger mean gives more noise."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"density.std={self.std} must be positive")

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Heavy-tailed mode density of Esser et al. (2024), eq. 20. Scale 0 is uniform; positive scales favour middle levels."""

    scale: float

    def __post_init__(self) -> None:
        most = 2 / (pi - 2)
        if not -1 <= self.scale <= most:
            raise ValueError(f"density.scale={self.scale} must lie in [-1, {most:.4f}], or levels would run backwards")

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        # The paper's f is decreasing in the uniform draw; a quantile function must increase, hence 1 - u.
        rest = 1 - u
        return 1 - rest - self.scale * (torch.cos(rest * (pi / 2)) ** 2 - 1 + rest)


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """ln(sigma / alpha) ~ N(mean, std²) on the EDM path with this sigma_max and rho (Karras et al. 2022, table 1: mean -1.2, std 1.2)."""

    mean: float
    std: float
    sigma_max: float
    rho: float

    def quantile(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        scale = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return ((scale / self.sigma_max) ** (1 / self.rho)).clamp(0, 1)
