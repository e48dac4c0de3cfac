"""Engines: each maps a function over units of work, and gives each result as soon as it is there. All give the same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from sora.gate.sizes import MOST_WORKERS, Number
from sora.system.guarded_pool import Outcome, as_done


@runtime_checkable
class Engine(Protocol):
    """The interface of an engine."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        """The outcome of `function` for every item, in any order; a ValueError of the function is the item's reason."""
        ...

    def close(self) -> None:
        """End what the engine has started."""
        ...


class SerialEngine:
    """Works in this process alone, without limits, for debugging: a decoder that crashes ends the command."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        return as_done(function, items, workers=0, seconds=1.0, memory_gb=1.0)

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


class ProcessEngine:
    """Works in processes of this machine that cannot write, connect or start programs, and are killed if a unit takes too long or too much.

    workers: processes (None: one for each core). seconds: the most that one unit takes. memory_gb: address space of one process.
    """

    def __init__(self, *, workers: int | None, seconds: float, memory_gb: float) -> None:
        if workers is not None:
            Number(1, whole=True, most=MOST_WORKERS).of(workers, "engine.workers")
        for name, value in (("seconds", seconds), ("memory_gb", memory_gb)):
            Number(0, above=True).of(value, f"engine.{name}")
        self.workers = workers or len(os.sched_getaffinity(0))
        self.seconds, self.memory_gb = seconds, memory_gb

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        return as_done(function, items, workers=self.workers, seconds=self.seconds, memory_gb=self.memory_gb)

    def close(self) -> None:
        """Do nothing: the processes of a call end with it."""
