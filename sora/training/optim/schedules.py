"""Learning rates as functions of the step, as shares of the peak rate. `step` counts from 0; `steps` is the length of the run."""

from __future__ import annotations

import math


def constant_schedule(step: int, *, steps: int, warmup: int) -> float:
    """A linear rise over `warmup` steps, then 1."""
    return _rise(step, warmup)


def cosine_schedule(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """A linear rise, then half a cosine down to `floor` at the last step (Loshchilov & Hutter 2017)."""
    share = _share(step, start=warmup, end=steps)
    return _rise(step, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


def linear_tail_schedule(step: int, *, steps: int, warmup: int, tail: float, floor: float) -> float:
    """A linear rise, 1 for most of the run, then a straight line down to `floor` over the last share `tail` of it."""
    share = _share(step, start=steps - round(tail * steps), end=steps)
    return _rise(step, warmup) * (1 - (1 - floor) * share)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def _share(step: int, *, start: int, end: int) -> float:
    """The position of `step` between `start` and `end`, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / max(1, end - 1 - start)))
