"""Rotary positions of clips longer or larger than those a network was trained on.

Each function changes the rates at which pairs of channels turn, axis by axis, and gives a gain for queries and keys (1: none):

    stretch([rates of time, rates of rows, rates of columns]) -> ([rates, rates, rates], gain)

A rate is in radians per position; an axis' rates stand from the fastest pair to the slowest. factors: how many times as many positions
each axis has as in training. At factor 1 an axis is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, pi, prod

import torch
from jaxtyping import Float
from torch import Tensor

Rates = Sequence[Float[Tensor, "_"]]


def interpolated_rope(rates: Rates, *, factors: Sequence[float]) -> tuple[Rates, float]:
    """dit.rope.stretch: every pair slower by the factor, as if positions stood closer (Chen et al. 2023, position interpolation)."""
    return [rate / factor for rate, factor in zip(rates, _checked(factors), strict=True)], 1.0


def ntk_rope(rates: Rates, *, factors: Sequence[float]) -> tuple[Rates, float]:
    """dit.rope.stretch: the fastest pair as it was, the slowest slower by the factor, geometrically in between.

    It is the larger base b s^(d / (d - 2)) of "NTK-aware" interpolation (Peng et al. 2023, YaRN, definition 1), which Cosmos uses too.
    An axis of one pair keeps it.
    """
    return [rate * _powers(factor, len(rate)).to(rate) for rate, factor in zip(rates, _checked(factors), strict=True)], 1.0


def yarn_rope(rates: Rates, *, factors: Sequence[float], extent: Sequence[float], slow: float, fast: float) -> tuple[Rates, float]:
    """dit.rope.stretch: YaRN (Peng et al. 2023, definitions 2 and 3).

    A pair that turns less than `slow` times (their alpha) within the trained extent is slower by the factor; one that turns more than
    `fast` times (beta) stays; in between a linear ramp mixes the two rates. The gain of queries and keys alike is 0.1 ln s + 1 with s the
    factor by which tokens grow, so that attention among more of them stays as sharp. extent: the trained positions of time (seconds
    times time_scale), rows and columns.

    Raises:
        ValueError: a factor or an extent is not above 0, or slow is not below fast.
    """
    if len(extent) != 3 or not all(0 < number < inf for number in extent):
        raise ValueError(f"dit.rope.stretch.extent is {list(extent)}; it needs three numbers above 0: the positions trained on, per axis")
    if not slow < fast:
        raise ValueError(f"dit.rope.stretch.slow={slow} must be below dit.rope.stretch.fast={fast}; both count turns within the extent")
    changed = []
    for rate, factor, length in zip(rates, _checked(factors), extent, strict=True):
        kept = ((length * rate / (2 * pi) - slow) / (fast - slow)).clamp(0, 1)
        changed.append((1 - kept) * rate / factor + kept * rate)
    return changed, 0.1 * log(max(1.0, prod(factors))) + 1.0


def _powers(factor: float, pairs: int) -> Float[Tensor, "_"]:
    return factor ** -(torch.arange(pairs, dtype=torch.float64) / max(1, pairs - 1))


def _checked(factors: Sequence[float]) -> Sequence[float]:
    if len(factors) != 3 or not all(0 < number < inf for number in factors):
        raise ValueError(f"dit.rope.stretch.factors is {list(factors)}; it needs three numbers above 0, for time, rows and columns")
    return factors
