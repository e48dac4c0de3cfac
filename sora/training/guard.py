"""Decides which steps update the weights: none whose loss or gradient is not finite and, if asked for, none whose loss is an outlier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

NOT_FINITE, SPIKE = "not finite", "spike"
FLAT = 0.01  # the scatter counts as at least this share of the median: else a loss that never moved makes a spike of its first change


def deviations(value: float, among: Sequence[float]) -> float:
    """How far `value` lies above the median of `among`, in robust standard deviations (1.4826 times the median absolute deviation)."""
    middle = median(among)
    spread = 1.4826 * median(abs(one - middle) for one in among)
    return (value - middle) / max(spread, FLAT * abs(middle), 1e-12)


class Guard:
    """Decides for every step whether the weights are updated; all ranks pass the same numbers and decide alike.

    patience: skipped steps in a row after which the run goes back to a checkpoint or stops. most: skipped steps allowed in the whole run.
    spike: robust standard deviations above the median from which a loss is skipped as an outlier; None skips none. history: number of
    latest losses that a loss is compared with; no loss is an outlier before there are that many. max_rollbacks: how often the run may go
    back to an earlier checkpoint instead of stopping. losses: this history; it is stored in checkpoints, so that a resumed run decides as
    an uninterrupted one would.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(self, *, patience: int, most: int, spike: float | None, history: int, max_rollbacks: int) -> None:
        if patience < 1 or most < 0 or max_rollbacks < 0:
            raise ValueError(
                f"guard.patience={patience} must be at least 1, guard.most={most} and guard.max_rollbacks={max_rollbacks} at least 0"
            )
        if spike is not None and not spike > 0:
            raise ValueError(f"guard.spike={spike} must be above 0, in robust standard deviations; null looks for none")
        if history < 8:
            raise ValueError(f"guard.history={history} must be at least 8: fewer losses say little of how they scatter")
        self.patience, self.most, self.spike, self.history, self.max_rollbacks = patience, most, spike, history, max_rollbacks
        self.losses: list[float] = []

    def judge(self, loss: float, *, finite: bool) -> str:
        """Why the step must be skipped; the empty string if it updates the weights."""
        if not finite:
            return NOT_FINITE
        if self.spike is None:
            return ""
        if len(self.losses) >= self.history and deviations(loss, self.losses) > self.spike:
            return SPIKE
        self.losses = [*self.losses[-self.history + 1 :], loss]
        return ""


class Suspects:
    """Samples whose loss was NaN or infinite. They are quarantined only after a later step trains normally, because that shows that the
    sample, not the weights, was at fault.

    hold: called with (step of the plan, sample ids, reason) to quarantine samples. waiting: the `facts` of a checkpoint, (step, ids) pairs.
    """

    def __init__(self, hold: Callable[[int, Sequence[int], str], object], waiting: Sequence[Sequence[Any]] = ()) -> None:
        self._hold, self._waiting = hold, [(step, list(ids)) for step, ids in waiting]

    @property
    def facts(self) -> list[tuple[int, list[int]]]:
        return list(self._waiting)

    def left_out(self, step: int, ids: Sequence[int]) -> None:
        self._waiting.append((step, list(ids)))

    def learned(self) -> None:
        """Quarantine the waiting samples: a step updated the weights, so the weights are sound."""
        for step, ids in self._waiting:
            self._hold(step - 1, ids, f"its loss was not finite at step {step}")
        self._waiting = []

    def forget(self) -> None:
        """Clear the waiting samples: the run goes back to earlier weights, so the weights were at fault."""
        self._waiting = []
