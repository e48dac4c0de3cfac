"""Work spread over processes that may crash, hang or eat memory without taking the job with them."""

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

UNSENT = 75  # the exit code of a loader worker that cannot hand over what it made
SHARED = "/dev/shm"  # where torch puts it
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of one item: a result, or why there is none (`reason` is empty when it went well).

    died: its process did, of a crash, the clock or the memory's limit, which may not have been its fault.
    """

    item: Item
    result: Result | None
    reason: str = ""
    died: bool = False


class Guarded(Generic[Item, Result]):
    """A function that runs under a clock: when it takes over `seconds`, the process that runs it is killed, whatever it is doing."""

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
    """What a process of a pool may take. memory_gb: of address space. apart: it opens no connection, starts no program and writes to no
    file, where the kernel can see to it; not for what reads files behind a network."""

    memory_gb: float
    apart: bool


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, seconds: float, memory_gb: float, apart: bool = True
) -> Iterator[Outcome[Item, Result]]:
    """`function` of every item, in their order, by at most `workers` processes (0: in this one, without clock or limit).

    A `ValueError` of the function becomes the item's reason, and so does that memory does not suffice; any other exception is raised here.
    An item whose process dies, or takes over `seconds`, is tried once more alone, and then given up with a reason. memory_gb, apart: see
    `Hold`.
    """
    if workers == 0:
        for item in items:
            yield _plainly(function, item)
        return
    guarded = Guarded(function, seconds)
    left = iter(items)
    soon = list(islice(left, workers))  # a pool starts all of its processes at once: no more of them than there are items
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
    """End a pool's processes at once: after Ctrl-C nobody wants what is under way. A second Ctrl-C, while the first waited for that, would
    take the wait for done; the interpreter then closes the queue by which idle processes are told to end, and waits for them for ever."""
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
    """Yield the oldest result; if a process died, redo all that was under way one by one, and go on with a new pool."""
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
    with born_deaf():  # the first starts the processes, in which Ctrl-C would be a traceback until `_start`
        return pool.submit(guarded, item)


def _pool(workers: int, hold: Hold) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_start, initargs=(Parent.here(), hold))


def _start(parent: Parent, hold: Hold) -> None:
    parent.hold_to()  # one that is killed by force cannot tell its workers to end, and they would wait for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills the process even inside a decoder
    limit = int(hold.memory_gb * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    if hold.apart:
        confine()


# ---- how workers end


def ending(code: int) -> str:
    """How a worker ended, and what to change, as the rest of a sentence."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code in (UNSENT, -signal.SIGBUS):
        return f"{'could not hand a step over' if code == UNSENT else how}: {_shared_memory()}"
    return f"{how}: {killed_for_memory()}; fewer workers= or a smaller data.cache_mb= need less"


def _shared_memory() -> str:
    """What is known of a step that did not fit where workers put it for the trainer."""
    more = "give it more (docker run --shm-size=16g or --ipc=host), or set fewer workers=; workers=0 needs none"
    try:
        room = os.statvfs(SHARED)
    except OSError:
        return f"{SHARED} cannot be used; {more}"
    size, left = (blocks * room.f_frsize / 1e6 for blocks in (room.f_blocks, room.f_bavail))
    return f"{SHARED} takes {size:,.0f} MB, of which {left:,.0f} are left; {more}"


def killed_for_memory() -> str:
    """What is known of a kill for want of memory."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        events = dict(line.split() for line in Path(f"/sys/fs/cgroup{group}/memory.events").read_text(encoding="utf-8").splitlines())
        times = int(events["oom_kill"])
    except (OSError, ValueError, KeyError):  # not a cgroup of version 2: nobody says
        times = 0
    return f"the system has killed {times} processes of this job for want of memory" if times else "most often that is want of memory"
