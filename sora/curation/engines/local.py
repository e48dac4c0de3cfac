"""Engines: each maps a function over units of work, and gives each result as soon as it is there. All give the same results."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from sora.gate.sizes import MOST_WORKERS, Number
from sora.system.guarded_pool import GuardedPool, Hold, Outcome

# What stages import, where it is installed: loaded once, for all processes and for those that follow one that died.
USED = ("cv2", "scenedetect", "scipy.fft", "PIL.Image", "PIL.JpegImagePlugin", "c2pa")


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
        return GuardedPool(0, Hold(seconds=1.0, memory_gb=1.0)).as_done(function, items)

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


class ProcessEngine:
    """Works in processes of this machine that cannot write, connect or start programs, and are killed if a unit takes too long or too much.

    workers: processes (None: one for each core). seconds: the most that one unit takes. memory_gb: address space of one process. The
    processes live until `close`, or as long as the engine.
    """

    def __init__(self, *, workers: int | None, seconds: float, memory_gb: float) -> None:
        if workers is not None:
            Number(1, whole=True, most=MOST_WORKERS).of(workers, "engine.workers")
        for name, value in (("seconds", seconds), ("memory_gb", memory_gb)):
            Number(0, above=True).of(value, f"engine.{name}")
        self._pool = GuardedPool(workers or len(os.sched_getaffinity(0)), Hold(seconds=seconds, memory_gb=memory_gb))
        weakref.finalize(self, self._pool.close)

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Outcome]:
        for name in USED:
            with suppress(ImportError):
                import_module(name)
        yield from self._pool.as_done(function, items)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
