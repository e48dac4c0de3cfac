"""Noise levels: shifts of them, and the schedules of sampling, at which levels the network is asked.

A shift maps a clip's number of tokens to a factor: larger clips need more noise to hide the same content (Esser et al. 2024, section
5.3.2). Training densities and sampling levels use the same one. A schedule takes the number of steps, the shift of the clip and the first
level, and returns steps + 1 levels, which fall strictly from `first` to 0. The shift is applied last, to the levels that each function
describes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

Shift = Callable[[int], float]


def constant_shift(tokens: int, *, value: float) -> float:
    """Factor `value` for every clip; 1 leaves levels unchanged."""
    return value


def shift_by_tokens(tokens: int, *, reference: int, power: float, least: float, most: float) -> float:
    """Factor (tokens / reference)^power, clamped to [least, most]. Power 0.5 keeps the signal-to-noise ratio of a smooth clip."""
    return min(max((tokens / reference) ** power, least), most)


def shifted(t: Float[Tensor, "..."], factor: float) -> Float[Tensor, "..."]:
    """Shifted levels factor·t / (1 + (factor - 1)·t), which adds ln(factor) to logit(t) (Esser et al. 2024, eq. 23)."""
    if factor <= 0:
        raise ValueError(f"a shift of {factor} is not positive; 1 changes nothing, 3 moves levels towards noise")
    return factor * t / (1 + (factor - 1) * t)


class Schedule(Protocol):
    """The interface of a schedule."""

    def __call__(self, steps: int, *, shift: float, first: float) -> Float[Tensor, "S1"]: ...


def uniform_levels(steps: int, *, shift: float = 1.0, first: float = 1.0) -> Float[Tensor, "S1"]:
    """Equally spaced levels. For 3 steps and shift 1 they are 1, 2/3, 1/3, 0."""
    _check(steps, first)
    return _finished(torch.linspace(first, 0, steps + 1, dtype=torch.float64), shift)


def karras_levels(steps: int, *, shift: float = 1.0, first: float = 1.0, rho: float, least: float) -> Float[Tensor, "S1"]:
    """Levels whose rho-th roots are equally spaced from `first` to `least`, then 0 (Karras et al. 2022, eq. 5)."""
    _check(steps, first)
    if rho <= 0 or not 0 < least < first:
        raise ValueError(f"levels.rho={rho} must be above 0, and levels.least={least} between 0 and the first level, {first}")
    ends = torch.tensor([first, least], dtype=torch.float64) ** (1 / rho)
    roots = torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64) if steps > 1 else ends[:1]
    return _finished(torch.cat([roots**rho, torch.zeros(1, dtype=torch.float64)]), shift)


def beta_levels(steps: int, *, shift: float = 1.0, first: float = 1.0, one: float, other: float) -> Float[Tensor, "S1"]:
    """Quantiles of a beta distribution at equally spaced probabilities (Lee et al. 2024, Beta sampling): small parameters put more steps at
    both ends, 1 and 1 are uniform."""
    from scipy.special import betaincinv

    _check(steps, first)
    if one <= 0 or other <= 0:
        raise ValueError(f"levels.one={one} and levels.other={other} must be above 0")
    shares = torch.linspace(1, 0, steps + 1, dtype=torch.float64).numpy()
    return _finished(first * torch.as_tensor(betaincinv(one, other, shares)), shift)


def linear_quadratic_levels(steps: int, *, shift: float = 1.0, first: float = 1.0, knee: float) -> Float[Tensor, "S1"]:
    """Half of the steps fall linearly by `knee` together, the others quadratically from there, at first as fast (LTX-Video, Mochi)."""
    _check(steps, first)
    if not 0 < knee < 0.5:
        raise ValueError(f"levels.knee={knee} must lie between 0 and 0.5")
    half = max(1, steps // 2)
    rest = steps - half
    slope = knee / half
    place = torch.arange(steps + 1, dtype=torch.float64)
    beyond = (place - half).clamp_min(0)
    bend = (1 - knee - slope * rest) / rest**2 if rest else 0.0
    fallen = slope * place + bend * beyond**2
    fallen[-1] = 1.0
    return _finished(first * (1 - fallen), shift)


def listed_levels(steps: int, *, shift: float = 1.0, first: float = 1.0, values: Sequence[float]) -> Float[Tensor, "S1"]:
    """The given levels, one for each step, and 0, if it is not there, at the end."""
    found = [*values] if values and values[-1] == 0 else [*values, 0.0]
    if steps != len(found) - 1:
        raise ValueError(f"levels.values has {len(found) - 1} levels above 0, and steps={steps}: set steps={len(found) - 1}")
    if first not in (1, found[0]):
        raise ValueError(f"first={first}, but levels.values begins with {found[0]}; leave first out")
    _check(steps, found[0])
    if any(after >= now for now, after in pairwise(found)):
        raise ValueError(f"levels.values={found} must fall from at most 1 to 0")
    return _finished(torch.tensor(found, dtype=torch.float64), shift)


def _check(steps: int, first: float) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: a sampler needs at least 1")
    if not 0 < first <= 1:
        raise ValueError(f"the first noise level is {first}; it must lie in (0, 1]")


def _finished(levels: Float[Tensor, "S1"], shift: float) -> Float[Tensor, "S1"]:
    return shifted(levels, shift).to(torch.float32)
