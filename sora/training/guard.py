"""Which steps a run learns from: none whose numbers are not finite, and none whose loss stands out, if that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

NOT_FINITE, SPIKE = "not finite", "spike"
FLAT = 0.01  # share of the median below which losses do not scatter: a loss that never moved makes no spike of its first change


def deviations(value: float, among: Sequence[float]) -> float:
    """How far `value` lies above the median of others, in robust standard deviations: 1.4826 times their median distance from it."""
    middle = median(among)
    spread = 1.4826 * median(abs(one - middle) for one in among)
    return (value - middle) / max(spread, FLAT * abs(middle), 1e-12)


class Guard:
    """Judges every step before the weights move; all ranks know the same numbers and judge alike.

    patience: steps in a row that may be left out before the run goes back or stops. most: steps of the whole run. spike: deviations from
    which a loss is left out too (None: none is). history: losses of the latest steps learned from that it is compared with; none is
    judged before there are as many. max_rollbacks: how often the run may go back to an earlier checkpoint instead of stopping.

    losses: the history, a part of every checkpoint, so that a resumed run judges as the uninterrupted one.

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
        """Why a step is left out; nothing if it is learned from."""
        if not finite:
            return NOT_FINITE
        if self.spike is None:
            return ""
        if len(self.losses) >= self.history and deviations(loss, self.losses) > self.spike:
            return SPIKE
        self.losses = [*self.losses[-self.history + 1 :], loss]
        return ""


class Suspects:
    """Samples whose own loss was not finite. They wait until a later step is learned from: then it was they and not the weights.

    hold: takes (the step of the plan, sample ids, why) once that is known. waiting: what a checkpoint kept of `facts`, (step, ids) each.
    """

    def __init__(self, hold: Callable[[int, Sequence[int], str], object], waiting: Sequence[Sequence[Any]] = ()) -> None:
        self._hold, self._waiting = hold, [(step, list(ids)) for step, ids in waiting]

    @property
    def facts(self) -> list[tuple[int, list[int]]]:
        return list(self._waiting)

    def left_out(self, step: int, ids: Sequence[int]) -> None:
        self._waiting.append((step, list(ids)))

    def learned(self) -> None:
        """A step was learned from: the weights are sound."""
        for step, ids in self._waiting:
            self._hold(step - 1, ids, f"its loss was not finite at step {step}")
        self._waiting = []

    def forget(self) -> None:
        """The weights were not sound, and are put back to earlier ones: the samples are cleared."""
        self._waiting = []
