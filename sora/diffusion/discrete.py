"""Discrete noise schedules (DDPM and its descendants) as continuous paths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """x_t = cos(a) x0 + sin(a) eps, where cos(a)² is the product of 1 - beta over the steps up to t (DDPM, Ho et al. 2020, eq. 4).

    Level 0 is data and level n / steps is the state after n steps, which DDPM schedulers number n - 1 (dit.level.before=1 tells the
    network this number). Between two steps the angle a is interpolated linearly.
    first, last: betas of the first and the last step. root: the `root`-th roots of the betas are equally spaced (1: linear schedule;
    2: Stable Diffusion's schedule). snr: divisor of alpha² / sigma² at every level (CogVideoX, Yang et al. 2024). zero_end: rescale the
    square roots of the products so that the last is 0 and the first stays; level 1 is then pure noise (Lin et al. 2023, algorithm 1).
    """

    steps: int
    first: float
    last: float
    root: float
    snr: float
    zero_end: bool

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.first <= self.last < 1 or self.root <= 0 or self.snr <= 0:
            raise ValueError(
                f"path: steps={self.steps} must be at least 2, first={self.first} and last={self.last} rise between 0 and 1, and"
                f" root={self.root} and snr={self.snr} lie above 0"
            )

    @cached_property
    def angles(self) -> Float[Tensor, "K"]:
        """Angles a at levels 0, 1 / steps, …, 1: float64 radians, from 0 to at most pi / 2."""
        ends = torch.tensor([self.first, self.last], dtype=torch.float64) ** (1 / self.root)
        betas = torch.linspace(float(ends[0]), float(ends[1]), self.steps, dtype=torch.float64) ** self.root
        products = (1 - betas).cumprod(0)
        products = products / (self.snr + (1 - self.snr) * products)
        if self.zero_end:
            roots = products.sqrt()
            products = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        return torch.cat((torch.zeros(1, dtype=torch.float64), torch.atan2((1 - products).sqrt(), products.sqrt())))

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.cos(self._angle(t)[0])

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sin(self._angle(t)[0])

    def d_alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        angle, slope = self._angle(t)
        return -torch.sin(angle) * slope

    def d_sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        angle, slope = self._angle(t)
        return torch.cos(angle) * slope

    def _angle(self, t: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Angle at each level, and its derivative with respect to the level."""
        table = self.angles.to(dtype=t.dtype, device=t.device)
        place = t * self.steps
        below = place.floor().clamp(0, self.steps - 1).to(torch.int64)
        start, step = table[below], table[below + 1] - table[below]
        return start + (place - below) * step, step * self.steps
