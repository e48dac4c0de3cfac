"""A pool of processes that may crash, hang or run out of memory without ending the job."""

from __future__ import annotations

import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

from sora.gate.confine import confine
from sora.system.processes import ASKING, Parent, born_deaf

UNSENT = 75  # exit code of a loader worker that cannot send its batch
SHARED = "/dev/shm"  # where torch puts batches
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """The result for one item, or the reason why there is none (`reason` is empty if there is a result).

    died: its process died by a crash, the time limit or the memory limit, which may not have been the item's fault.
    """

    item: Item
    result: Result | None
    reason: str = ""
    died: bool = False


class Guarded(Generic[Item, Result]):
    """A function with a time limit: if it takes over `seconds`, the process that runs it is killed, whatever it is doing."""

    def __init__(self, function: Callable[[Item], Result], seconds: float) -> None:
        self.function, self.seconds = function, seconds

    def __call__(self, item: Item) -> Outcome[Item, Result]:
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            return Outcome(item, self.function(item))
        except (ValueError, MemoryError) as error:
            return _failed(item, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Limits of a process in a pool. memory_gb: of address space. apart: it cannot open connections, start programs or write files, where
    the kernel supports this; not for functions that read files over a network."""

    memory_gb: float
    apart: bool


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, seconds: float, memory_gb: float, apart: bool = True
) -> Iterator[Outcome[Item, Result]]:
    """The results of `function` for every item, in order, from at most `workers` processes (0: in this one, without limits).

    A `ValueError` of the function, or a lack of memory, becomes the item's reason; any other exception is raised here. An item whose
    process dies or takes over `seconds` is tried once more alone, then given up with a reason. memory_gb, apart: see `Hold`.
    """
    if workers == 0:
        for item in items:
            yield _plainly(function, item)
        return
    guarded = Guarded(function, seconds)
    left = iter(items)
    soon = list(islice(left, workers))  # a pool starts all its processes at once: start no more than there are items
    if not soon:
        return
    workers = len(soon)
    pending: deque[tuple[Item, Future[Outcome[Item, Result]]]] = deque()
    hold = Hold(memory_gb=memory_gb, apart=apart)
    pool = _pool(workers, hold)
    try:
        for item in chain(soon, left):
            pending.append((item, _given(pool, guarded, item)))
            if len(pending) < 4 * workers:
                continue
            pool = yield from _first(pending, pool, guarded, workers, hold)
        while pending:
            pool = yield from _first(pending, pool, guarded, workers, hold)
    except BaseException:
        _kill(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    """Kill a pool's processes, because after Ctrl-C nobody needs their results. Waiting instead may hang: a second Ctrl-C makes the
    interpreter close the queue that tells idle processes to end, and then wait for them for ever."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def _plainly(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except (ValueError, MemoryError) as error:
        return _failed(item, error)


def _failed(item: Item, error: Exception) -> Outcome[Item, Any]:
    if isinstance(error, MemoryError):
        return Outcome(item, None, "it needs more memory than a process may take", died=True)
    return Outcome(item, None, str(error))


def _first(pending: deque, pool: ProcessPoolExecutor, guarded: Guarded, workers: int, hold: Hold) -> Iterator[Outcome]:
    """Yield the oldest result. If a process died, run all unfinished items again one by one, and return a new pool."""
    item, future = pending[0]
    try:
        done = future.result()
    except BrokenProcessPool:
        pool.shutdown(wait=True)
        redo = [item for item, _ in pending]
        pending.clear()
        for item in redo:
            yield _alone(guarded, item, hold)
        return _pool(workers, hold)
    pending.popleft()
    yield done
    return pool


def _alone(guarded: Guarded[Item, Result], item: Item, hold: Hold) -> Outcome[Item, Result]:
    with _pool(1, hold) as single:
        try:
            return _given(single, guarded, item).result()
        except BrokenProcessPool:
            return Outcome(item, None, f"the process that read it crashed, or took over {guarded.seconds:g} seconds", died=True)
        except BaseException:
            _kill(single)
            raise


def _given(pool: ProcessPoolExecutor, guarded: Guarded[Item, Result], item: Item) -> Future[Outcome[Item, Result]]:
    with born_deaf():  # the first call starts the processes, in which Ctrl-C would print a traceback until `_start` runs
        return pool.submit(guarded, item)


def _pool(workers: int, hold: Hold) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_start, initargs=(Parent.here(), hold))


def _start(parent: Parent, hold: Hold) -> None:
    parent.hold_to()  # a parent that is killed cannot tell its workers to end, and they would wait for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default kills the process even inside a decoder
    limit = int(hold.memory_gb * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    if hold.apart:
        confine()


# ---- messages on how workers ended


def ending(code: int) -> str:
    """How a worker ended and what to change, as the end of a sentence."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code in (UNSENT, -signal.SIGBUS):
        return f"{'could not hand a step over' if code == UNSENT else how}: {_shared_memory()}"
    return f"{how}: {killed_for_memory()}; fewer workers= or a smaller data.cache_mb= need less"


def _shared_memory() -> str:
    """The size and free space of /dev/shm, where workers put batches for the trainer, and how to get more."""
    more = "give it more (docker run --shm-size=16g or --ipc=host), or set fewer workers=; workers=0 needs none"
    try:
        room = os.statvfs(SHARED)
    except OSError:
        return f"{SHARED} cannot be used; {more}"
    size, left = (blocks * room.f_frsize / 1e6 for blocks in (room.f_blocks, room.f_bavail))
    return f"{SHARED} takes {size:,.0f} MB, of which {left:,.0f} are left; {more}"


def killed_for_memory() -> str:
    """How many processes the kernel killed for lack of memory, if that is known; else that a lack of memory is the usual cause."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        events = dict(line.split() for line in Path(f"/sys/fs/cgroup{group}/memory.events").read_text(encoding="utf-8").splitlines())
        times = int(events["oom_kill"])
    except (OSError, ValueError, KeyError):  # no cgroup of version 2 to read it from
        times = 0
    return f"the system has killed {times} processes of this job for want of memory" if times else "most often that is want of memory"
