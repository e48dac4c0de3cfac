"""The difference between two measurements of the same items, with its interval, and the smallest difference that they could have shown.

The items are a random sample; the measurements are deterministic: the same clips with the same noise, under two sets of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

WANTED = 0.8  # the power at which a difference counts as detectable


@dataclass(frozen=True)
class Change:
    """The relative change of the mean, second over first minus 1, with its interval (NaN below 3 items). p: of no change.

    power: the probability of an interval without 0 if the true change were `effect`. detectable: the change with a power of 0.8.
    """

    n: int
    change: float
    low: float
    high: float
    p: float
    effect: float
    power: float
    detectable: float


def paired_change(one: Float[Tensor, "n"], two: Float[Tensor, "_"], *, effect: float = 0.01, level: float = 0.95) -> Change:
    """The relative change of the mean from `one` to `two`, by item: Student's t on the linearised ratio of means (Cochran 1977, chapter 6).

    A change in proportion to each item costs no precision, however much items differ. Raises ValueError for values that are not paired, not
    finite, or whose mean is not above 0.
    """
    if one.ndim != 1 or one.shape != two.shape or len(one) < 1:
        raise ValueError(f"values of shapes {tuple(one.shape)} and {tuple(two.shape)} are no pairs; give both for the same items")
    if effect <= 0 or not 0 < level < 1:
        raise ValueError(f"effect={effect} must be above 0 and level={level} between 0 and 1")
    one, two = one.detach().cpu().double(), two.detach().cpu().double()
    if not bool(torch.isfinite(one).all() & torch.isfinite(two).all()) or one.mean() <= 0:
        raise ValueError("values must be finite, and the first ones above 0 in the mean: their ratio is what is told")
    n, ratio = len(one), float(two.mean() / one.mean())
    if n < 3:
        nan = float("nan")
        return Change(n, ratio - 1, nan, nan, nan, effect, nan, nan)
    rest = (two - ratio * one) / one.mean()
    error, freedom = float(rest.square().sum() / (n - 1) / n) ** 0.5, n - 1
    reach = float(stats.t.ppf((1 + level) / 2, freedom))
    change = ratio - 1
    p = float(2 * stats.t.sf(abs(change) / error, freedom)) if error > 0 else float(change == 0)
    detectable = (reach + float(stats.t.ppf(WANTED, freedom))) * error
    return Change(n, change, change - reach * error, change + reach * error, p, effect, _power(effect, error, reach, freedom), detectable)


@dataclass(frozen=True)
class MeanDifference:
    """The second mean minus the first, in the values' own units, with its interval (NaN below 3 items)."""

    n: int
    difference: float
    low: float
    high: float


def paired_difference(one: Float[Tensor, "n"], two: Float[Tensor, "_"], *, level: float = 0.95) -> MeanDifference:
    """The difference of means from `one` to `two`, by item: Student's t on the differences; if all values are 0 or 1, so that the means are
    shares, the adjusted Wald interval of Bonett and Price (2012), which is valid even if all items agree.

    Raises ValueError for values that are not paired or not finite.
    """
    if one.ndim != 1 or one.shape != two.shape or len(one) < 1:
        raise ValueError(f"values of shapes {tuple(one.shape)} and {tuple(two.shape)} are no pairs; give both for the same items")
    one, two = one.detach().cpu().double(), two.detach().cpu().double()
    if not bool(torch.isfinite(one).all() & torch.isfinite(two).all()) or not 0 < level < 1:
        raise ValueError(f"values must be finite, and level={level} between 0 and 1")
    apart, n = two - one, len(one)
    mean = float(apart.mean())
    if n < 3:
        return MeanDifference(n, mean, float("nan"), float("nan"))
    both = torch.cat([one, two])
    if bool(((both == 0) | (both == 1)).all()):
        up, down = ((float((apart == sign).sum()) + 1) / (n + 2) for sign in (1, -1))
        centre, half = up - down, float(stats.norm.ppf((1 + level) / 2)) * ((up + down - (up - down) ** 2) / (n + 2)) ** 0.5
        return MeanDifference(n, mean, max(-1.0, centre - half), min(1.0, centre + half))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(apart.std()) / n**0.5
    return MeanDifference(n, mean, mean - half, mean + half)


def _power(effect: float, error: float, reach: float, freedom: int) -> float:
    """The power of a two-sided t test; beyond 30 standard errors it is 1, where the noncentral distribution rounds badly."""
    if error == 0 or effect / error > 30:
        return 1.0
    shift = effect / error
    return float(stats.nct.sf(reach, freedom, shift) + stats.nct.cdf(-reach, freedom, shift))


def mean_interval(values: Float[Tensor, "n"], *, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of sampled items with Student's interval; NaN at both ends for fewer than two."""
    values = values.detach().cpu().double()
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(values.std()) / n**0.5
    return mean, mean - half, mean + half


def wilson(share: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927); within [0, 1] for any share."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At a share of 0 or 1 the formula gives exactly that end, but for rounding.
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))
