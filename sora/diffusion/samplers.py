"""Solvers of the probability-flow equation dx/dt = v(x, t), from noise (t = 1) down to data (t = 0).

A sampler needs a callable that gives velocities, a start and a list of levels; it does not know the network. `levels` is (S + 1,), or
(S + 1, N) when rows of x have schedules of their own (N leading x's shape): rows whose level does not change, such as conditions at
level 0, stay as they are.
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
    """steps + 1 levels from `first` to 0, equally spaced, then shifted (3 steps, shift 1: 1, 2/3, 1/3, 0)."""
    if steps < 1:
        raise ValueError(f"steps={steps}: a sampler needs at least 1")
    if not 0 < first <= 1:
        raise ValueError(f"the first noise level is {first}; it must lie in (0, 1]")
    return shifted(torch.linspace(first, 0, steps + 1, dtype=torch.float64), shift).to(torch.float32)


def _steps(x: Tensor, levels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(level, next level, difference shaped to multiply x) of every step."""
    if levels.ndim not in (1, 2) or len(levels) < 2:
        raise ValueError(f"levels of shape {tuple(levels.shape)}; give (steps + 1,) or (steps + 1, {len(x)})")
    for now, after in pairwise(levels):
        yield now, after, like(after - now, x)


def euler(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """First order, one prediction a step."""
    for t, _, dt in _steps(x, levels):
        x = x + dt * predict(x, t)
    return x


def heun(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Second order (Karras et al. 2022, algorithm 1), two predictions a step, one in the last, which ends at level 0."""
    last = len(levels) - 2
    for step, (t, after, dt) in enumerate(_steps(x, levels)):
        slope = predict(x, t)
        if step < last:
            slope = (slope + predict(x + dt * slope, after)) / 2
        x = x + dt * slope
    return x


def midpoint(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Second order, two predictions a step, none at level 0."""
    for t, after, dt in _steps(x, levels):
        half = x + dt / 2 * predict(x, t)
        x = x + dt * predict(half, (t + after) / 2)
    return x


def adams_bashforth(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Second order from one prediction a step, by remembering the last one (two-step Adams-Bashforth with unequal steps)."""
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
