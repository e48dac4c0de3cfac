"""Shifts of noise levels: larger clips need more noise to hide the same content (Esser et al. 2024, section 5.3.2).

A shift maps a clip's number of tokens to a factor. Training densities and sampling levels use the same shift.
"""

from __future__ import annotations

from collections.abc import Callable

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
