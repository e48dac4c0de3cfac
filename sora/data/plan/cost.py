"""The cost of training on a clip of n tokens: a n + b n^2, for the layers and for attention inside the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The coefficients in any one unit; only their ratio changes a plan. quadratic: None to compute it from the network's width."""

    linear: float
    quadratic: float | None

    def __post_init__(self) -> None:
        if self.linear <= 0 or (self.quadratic is not None and self.quadratic < 0):
            raise ValueError(
                f"plan.cost is linear={self.linear}, quadratic={self.quadratic}; it needs linear above 0 and quadratic at least 0 "
                "(null: by the network's width); measure both with: sora plan calibrate=true"
            )

    def of_width(self, width: int | None) -> Cost:
        """This cost with `quadratic` filled in: a layer of width d makes 24 d^2 operations a token, and 4 n d for attention; b / a = 1 / 6
        d."""
        if self.quadratic is not None:
            return self
        if width is not None and width < 1:
            raise ValueError(f"dit.width={width} must be 1 or more")
        if width is None:
            raise ValueError("plan.cost.quadratic is null, and no network says how wide it is; set it, such as plan.cost.quadratic=1e-4")
        return Cost(linear=self.linear, quadratic=self.linear / (6 * width))

    def of(self, tokens: Int[np.ndarray, "n"] | Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The cost of each clip."""
        tokens = np.asarray(tokens, dtype=np.float64)
        assert self.quadratic is not None
        return self.linear * tokens + self.quadratic * tokens * tokens


def fitted_cost(lengths: Sequence[int], seconds_per_token: Sequence[float]) -> Cost:
    """Fit a + b n by least squares to measured seconds per token of clips of n tokens; a negative slope becomes 0.

    Raises:
        ValueError: fewer than two different lengths.
    """
    if len(set(lengths)) < 2:
        raise ValueError(f"lengths {list(lengths)}: the cost of a clip takes two different lengths or more to measure")
    slope, level = np.polyfit(np.asarray(lengths, dtype=np.float64), np.asarray(seconds_per_token, dtype=np.float64), 1)
    if slope < 0 or level <= 0:
        level, slope = (float(np.mean(seconds_per_token)), 0.0) if slope < 0 else (1e-3 * slope * min(lengths), slope)
    return Cost(linear=float(level), quadratic=float(slope))
