"""Scaling of rotary position embeddings for clips that are longer or larger than those of training.

Each function changes the rotation rates of each axis, and returns a gain by which queries and keys are multiplied (1: no change):

    stretch([rates of time, rates of rows, rates of columns]) -> ([rates, rates, rates], gain)

Rates are in radians per position, ordered from the fastest pair to the slowest. factors: for each axis, the number of positions relative
to training; an axis with factor 1 is not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, pi, prod

import torch
from jaxtyping import Float
from torch import Tensor

Rates = Sequence[Float[Tensor, "_"]]


def interpolated_rope(rates: Rates, *, factors: Sequence[float]) -> tuple[Rates, float]:
    """Position interpolation (Chen et al. 2023), for dit.rope.stretch: divide all rates of an axis by its factor."""
    return [rate / factor for rate, factor in zip(rates, _checked(factors), strict=True)], 1.0


def ntk_rope(rates: Rates, *, factors: Sequence[float]) -> tuple[Rates, float]:
    """NTK-aware interpolation, for dit.rope.stretch: keep the fastest rate, divide the slowest by the factor, geometric in between.

    This is the larger base b s^(d / (d - 2)) of Peng et al. (2023, YaRN), definition 1, which Cosmos uses too. An axis with a single pair
    is not changed.
    """
    return [rate * _powers(factor, len(rate)).to(rate) for rate, factor in zip(rates, _checked(factors), strict=True)], 1.0


def yarn_rope(rates: Rates, *, factors: Sequence[float], extent: Sequence[float], slow: float, fast: float) -> tuple[Rates, float]:
    """YaRN (Peng et al. 2023, definitions 2 and 3), for dit.rope.stretch.

    The rate of a pair that turns less than `slow` times (their alpha) within the trained extent is divided by the factor; a pair that turns
    more than `fast` times (beta) keeps its rate; in between a linear ramp mixes the two rates. The gain of queries and keys is
    0.1 ln s + 1, where s is the product of the factors (1 if smaller), so that attention over more tokens stays as sharp.
    extent: number of positions in training along time (seconds times time_scale), rows and columns.

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
