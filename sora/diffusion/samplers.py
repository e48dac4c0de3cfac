"""Solvers of the probability-flow equation dx/dt = v(x, t), from noise (t = 1) down to data (t = 0).

A sampler takes a function that returns velocities, the initial x and a tensor of levels. `levels` is (S + 1,) for S steps, or (S + 1, N)
if each of the N rows of x has its own schedule. Rows whose level does not change, such as conditions at level 0, are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import like
from sora.diffusion.shift import shifted

Predict = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Predict, Tensor, Tensor], Tensor]


def uniform_levels(steps: int, *, shift: float = 1.0, first: float = 1.0) -> Float[Tensor, "S1"]:
    """`steps` + 1 equally spaced levels from `first` to 0, then shifted. For 3 steps and shift 1 they are 1, 2/3, 1/3, 0."""
    if steps < 1:
        raise ValueError(f"steps={steps}: a sampler needs at least 1")
    if not 0 < first <= 1:
        raise ValueError(f"the first noise level is {first}; it must lie in (0, 1]")
    return shifted(torch.linspace(first, 0, steps + 1, dtype=torch.float64), shift).to(torch.float32)


def _steps(x: Tensor, levels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (level, next level, their difference, broadcastable to x) for every step."""
    if levels.ndim not in (1, 2) or len(levels) < 2:
        raise ValueError(f"levels of shape {tuple(levels.shape)}; give (steps + 1,) or (steps + 1, {len(x)})")
    for now, after in pairwise(levels):
        yield now, after, like(after - now, x)


def euler(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Euler's method: first order, one prediction per step."""
    for t, _, dt in _steps(x, levels):
        x = x + dt * predict(x, t)
    return x


def heun(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Heun's method (Karras et al. 2022, algorithm 1): second order, two predictions per step but one in the last, an Euler step."""
    last = len(levels) - 2
    for step, (t, after, dt) in enumerate(_steps(x, levels)):
        slope = predict(x, t)
        if step < last:
            slope = (slope + predict(x + dt * slope, after)) / 2
        x = x + dt * slope
    return x


def midpoint(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Midpoint method: second order, two predictions per step, none at level 0."""
    for t, after, dt in _steps(x, levels):
        half = x + dt / 2 * predict(x, t)
        x = x + dt * predict(half, (t + after) / 2)
    return x


def adams_bashforth(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Two-step Adams-Bashforth method for unequal steps: second order with one prediction per step, reusing the previous one."""
    before: tuple[Tensor, Tensor] | None = None
    for t, _, dt in _steps(x, levels):
        slope = predict(x, t)
        step = dt * slope
        if before is not None:
            last_slope, last_dt = before
            moving = last_dt != 0
            ratio = torch.where(moving, dt / torch.where(moving, last_dt, torch.ones_like(last_dt)), torch.zeros_like(dt))
            step = step + dt * ratio / 2 * (slope - last_slope)
        before = slope, dt
        x = x + step
    return x
