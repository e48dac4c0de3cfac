"""Solvers of the probability-flow equation dx/dt = v(x, t), from noise (t = 1) down to data (t = 0): Runge-Kutta and Adams methods.

A sampler takes a function that returns velocities, the initial x and a tensor of levels, which is on the CPU, as are those that it gives
the function: nothing waits for a device to read them. `levels` is (S + 1,) for S steps, or (S + 1, N) if each of the N rows of x has its
own schedule. Rows whose level does not change, such as conditions at level 0, are not changed. All samplers have one signature: path is the
one that the velocities are of, and noise(k) the k-th standard normal tensor like x, which those of this file do not need. None of them asks
for a velocity at level 0, where that of some predictions is singular.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.path import Path, like

Predict = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[int], Tensor]


class Sampler(Protocol):
    """The interface of a sampler."""

    def __call__(
        self, predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw
    ) -> Float[Tensor, "..."]: ...


def _stages(x: Tensor, levels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (level, next level, their difference, broadcastable to x) for every step."""
    if levels.ndim not in (1, 2) or len(levels) < 2:
        raise ValueError(f"levels of shape {tuple(levels.shape)}; give (steps + 1,) or (steps + 1, {len(x)})")
    for now, after in pairwise(levels):
        yield now, after, like((after - now).to(x.device), x)


def euler(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw) -> Float[Tensor, "..."]:
    """Euler's method: first order, one prediction per step."""
    for t, _, dt in _stages(x, levels):
        x = x + dt * predict(x, t)
    return x


def heun(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw) -> Float[Tensor, "..."]:
    """Heun's method (Karras et al. 2022, algorithm 1): second order, two predictions per step but one in the last, an Euler step."""
    return heun_steps(predict, x, levels, ends=True)


def heun_steps(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, ends: bool) -> Float[Tensor, "..."]:
    """Heun's method over a part of a schedule. ends: whether the schedule ends with it, so that the last step is Euler's."""
    last = len(levels) - 2
    for step, (t, after, dt) in enumerate(_stages(x, levels)):
        slope = predict(x, t)
        if step < last or not ends:
            slope = (slope + predict(x + dt * slope, after)) / 2
        x = x + dt * slope
    return x


def midpoint(predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw) -> Float[Tensor, "..."]:
    """Midpoint method: second order, two predictions per step."""
    for t, after, dt in _stages(x, levels):
        half = x + dt / 2 * predict(x, t)
        x = x + dt * predict(half, (t + after) / 2)
    return x


def runge_kutta(
    predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw
) -> Float[Tensor, "..."]:
    """The classical Runge-Kutta method: fourth order, four predictions per step. The last step is Heun's third-order one, which asks three
    times and not at its end; a single such step leaves the order as it is."""
    last = len(levels) - 2
    for step, (t, after, dt) in enumerate(_stages(x, levels)):
        one = predict(x, t)
        if step == last:
            two = predict(x + dt / 3 * one, (2 * t + after) / 3)
            x = x + dt / 4 * (one + 3 * predict(x + 2 * dt / 3 * two, (t + 2 * after) / 3))
            continue
        two = predict(x + dt / 2 * one, (t + after) / 2)
        three = predict(x + dt / 2 * two, (t + after) / 2)
        x = x + dt / 6 * (one + 2 * two + 2 * three + predict(x + dt * three, after))
    return x


def adams_bashforth(
    predict: Predict, x: Float[Tensor, "..."], levels: Float[Tensor, "..."], *, path: Path, noise: Draw, order: int = 2
) -> Float[Tensor, "..."]:
    """Adams-Bashforth method for unequal steps, which reuses the velocities of the steps before: order 2 or 3, one prediction per step.

    The first step of order 2 is Euler's. The first two of order 3 are Heun's, which ask twice.
    """
    if order not in (2, 3):
        raise ValueError(f"sampler.order={order} of adams_bashforth must be 2 or 3")
    before: list[tuple[Tensor, Tensor]] = []  # velocities and lengths of the steps before, the latest first
    for step, (t, after, dt) in enumerate(_stages(x, levels)):
        slope = predict(x, t)
        mean = slope
        if len(before) == order - 1:
            mean = _extrapolated(slope, dt, before)
        elif order == 3 and step < len(levels) - 2:
            mean = (slope + predict(x + dt * slope, after)) / 2
        before = [(slope, dt), *before][: order - 1]
        x = x + dt * mean
    return x


def _extrapolated(slope: Tensor, dt: Tensor, before: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over the step of the polynomial through its first velocity and those before."""
    (last, length), *older = before
    moving = length != 0
    length = torch.where(moving, length, torch.ones_like(length))
    ratio = torch.where(moving, dt / length, torch.zeros_like(dt))
    difference = slope - last  # divided by the length of its step, the first divided difference
    mean = slope + ratio / 2 * difference
    for other, longer in older:
        safe = torch.where(moving, longer, torch.ones_like(longer))
        # The integral over the step of (t - t0)(t - t1) is dt³ / 3 + dt² length / 2; the second divided difference is over both steps.
        second = (difference / length - (last - other) / safe) / (length + safe)
        mean = mean + torch.where(moving, dt * (dt / 3 + length / 2), torch.zeros_like(dt)) * second
    return mean
