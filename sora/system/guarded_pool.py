"""A pool of processes that may crash, hang or run out of memory without ending the job."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from sora.gate.confine import confine
from sora.system.processes import ASKING, Parent, born_deaf

UNSENT = 75  # exit code of a loader worker that cannot send its batch
SHARED = "/dev/shm"  # where torch puts batches
AHEAD = 4  # results per process that may wait for an earlier one
_LATE = 60  # seconds beyond its time limit after which a process that did not end itself is killed from here
_ENDING = 5  # seconds that an idle process has to end
Item = TypeVar("Item")
Result = TypeVar("Result")
Start = Literal["fork", "forkserver"]


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
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    seconds: float,
    memory_gb: float,
    apart: bool = True,
    start: Start = "fork",
) -> Iterator[Outcome[Item, Result]]:
    """The results of `function` for every item, in order, from at most `workers` processes (0: in this one, without limits).

    A `ValueError` of the function, or a lack of memory, becomes the item's reason; any other exception is raised here. An item whose
    process dies or takes over `seconds` is tried once more in a new process, then given up with a reason; meanwhile the other processes go
    on, until `AHEAD` results per process wait for that item. memory_gb, apart: see `Hold`.

    start: how processes are started, as in `multiprocessing`. "fork" is quick, and wrong where this process has threads that may hold
    locks at that moment; "forkserver" starts them from a process without threads, which imports everything anew but the main module, so
    the function must be of another.
    """
    first, waiting = 0, dict[int, Outcome[Item, Result]]()
    run = _Run(function, workers=workers, seconds=seconds, hold=Hold(memory_gb=memory_gb, apart=apart), start=start)
    run.last = AHEAD * workers
    with closing(run.outcomes(items)) as outcomes:
        for number, done in outcomes:
            waiting[number] = done
            while first in waiting:
                yield waiting.pop(first)
                first += 1
                run.last += 1


def as_done(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    seconds: float,
    memory_gb: float,
    apart: bool = True,
    start: Start = "fork",
) -> Iterator[Outcome[Item, Result]]:
    """As `in_order`, but each result as soon as it is there, so that no number of items waits for one that hangs."""
    run = _Run(function, workers=workers, seconds=seconds, hold=Hold(memory_gb=memory_gb, apart=apart), start=start)
    with closing(run.outcomes(items)) as outcomes:
        for _, done in outcomes:
            yield done


class GuardedProcess(Generic[Item, Result]):
    """Gives the outcome of `function` for one item after another, from one process as those of `as_done`, which ends with `close`."""

    def __init__(self, function: Callable[[Item], Result], *, seconds: float, memory_gb: float, start: Start = "fork") -> None:
        self._run = _Run(function, workers=1, seconds=seconds, hold=Hold(memory_gb=memory_gb, apart=True), start=start)

    def __call__(self, item: Item) -> Outcome[Item, Result]:
        return self._run.alone(item)

    def close(self) -> None:
        """End the process."""
        self._run.end()


@contextmanager
def _nameless_main() -> Iterator[None]:
    """A context in which the main module seems to have no file, so that new processes do not run it again, which is what takes longest."""
    main = sys.modules["__main__"].__dict__
    hidden = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


@dataclass
class _Worker:
    """A process, the pipe to it, and the item that it computes. until: when it must have answered, by `time.monotonic`."""

    process: BaseProcess
    pipe: Connection
    number: int = 0
    item: Any = None
    again: bool = False
    until: float = 0.0

    def give(self, number: int, item: Any, *, again: bool, seconds: float) -> None:
        self.number, self.item, self.again = number, item, again
        self.until = time.monotonic() + seconds + _LATE
        self.send((item,))

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died meanwhile, which its missing answer will tell
            self.pipe.send(message)

    def bury(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Run(Generic[Item, Result]):
    """The processes of one call of `in_order` or `as_done`, without a thread in this process.

    A process has one item at a time and its own pipe, so that its death concerns that item alone.
    """

    def __init__(self, function: Callable[[Item], Result], *, workers: int, seconds: float, hold: Hold, start: Start) -> None:
        self.function, self.workers, self.seconds, self.hold, self.start = function, workers, seconds, hold, start
        self.last = sys.maxsize  # the largest number of an item that may be begun
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, _Worker] = {}

    def outcomes(self, items: Iterable[Item]) -> Generator[tuple[int, Outcome[Item, Result]], None, None]:
        """Yield each item's number and outcome as soon as it is there."""
        if self.workers == 0:
            for number, item in enumerate(items):
                yield number, _plainly(self.function, item)
            return
        left, given, task = enumerate(items), 0, None
        ended: deque[tuple[int, Outcome[Item, Result]]] = deque()
        atexit.register(self._kill)  # before multiprocessing waits for its processes, which wait for items
        try:
            while True:
                ended.extend(self._collect(still=not ended))
                while len(self.busy) < self.workers and given <= self.last:
                    if (task := task or next(left, None)) is None:
                        break
                    given += 1
                    self._give(*task)
                    task = None
                if ended:
                    yield ended.popleft()
                elif not self.busy:
                    return
                elif task is None:
                    task = next(left, None)  # while the processes work
        except BaseException:
            self._kill()
            raise
        finally:
            self.end()
            atexit.unregister(self._kill)

    def alone(self, item: Item) -> Outcome[Item, Result]:
        """The outcome of one item, while no other is computed."""
        self._give(0, item)
        while not (found := self._collect(still=True)):
            pass
        return found[0][1]

    def _give(self, number: int, item: Item, *, again: bool = False) -> None:
        """Give an item to a free process, or to a new one if none is free or it is given again."""
        with born_deaf():  # in a new process Ctrl-C would print a traceback until `_start` runs
            worker = self.idle.pop() if self.idle and not again else self._new()
            self.busy[worker.pipe] = worker
        worker.give(number, item, again=again, seconds=self.seconds)

    def _new(self) -> _Worker:
        context = get_context(self.start)
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, Parent.here(), self.hold, self.start))
        try:
            with _nameless_main() if self.start == "forkserver" else nullcontext():
                process.start()
        finally:
            theirs.close()  # else the end of the process would not end its pipe
        worker = _Worker(process, ours)
        try:
            worker.send(Guarded(self.function, self.seconds))
        except BaseException:  # a function that cannot be sent
            worker.bury()
            raise
        return worker

    def _collect(self, *, still: bool) -> list[tuple[int, Outcome[Item, Result]]]:
        """The outcomes that are there. still: wait for one; the list may be empty even so, after an item's first failure."""
        if not self.busy:
            return []
        patience = max(0.0, min(worker.until for worker in self.busy.values()) - time.monotonic()) if still else 0.0
        ready = [pipe for pipe in wait(list(self.busy), patience) if isinstance(pipe, Connection)]
        late = [pipe for pipe, worker in self.busy.items() if worker.until < time.monotonic() and not pipe.poll()]
        found: list[tuple[int, Outcome[Item, Result]]] = []
        for pipe in dict.fromkeys((*ready, *late)):
            worker, answer = self.busy[pipe], None
            if pipe not in late:
                with suppress(EOFError, OSError):  # nothing, or not all of it, came
                    answer = pipe.recv()
            if answer is not None:
                self.idle.append(worker)  # before it is out of `busy`, so that `_kill` finds it at any moment
                del self.busy[pipe]
                if isinstance(answer, _Raised):
                    raise answer.error
                found.append((worker.number, answer))
                continue
            worker.bury()
            del self.busy[pipe]
            if worker.again:
                why = f"the process that read it crashed, or took over {self.seconds:g} seconds"
                found.append((worker.number, Outcome(worker.item, None, why, died=True)))
            else:
                self._give(worker.number, worker.item, again=True)
        return found

    def _kill(self) -> None:
        """Kill all processes: after Ctrl-C, or an error, nobody needs their results."""
        for worker in (*self.busy.values(), *self.idle):
            worker.process.kill()

    def end(self) -> None:
        """Tell the idle processes to end, and wait for them."""
        workers = [*self.busy.values(), *self.idle]
        for worker in self.idle:
            worker.send(None)
        for worker in workers:
            worker.process.join(_ENDING)
            worker.bury()


class _Raised(NamedTuple):
    """The answer of a process whose function raised an exception that ends the whole run."""

    error: BaseException


def _plainly(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except (ValueError, MemoryError) as error:
        return _failed(item, error)


def _failed(item: Item, error: Exception) -> Outcome[Item, Any]:
    if isinstance(error, MemoryError):
        return Outcome(item, None, "it needs more memory than a process may take", died=True)
    return Outcome(item, None, str(error))


# ---- in the process of a worker


def _work(pipe: Connection, parent: Parent, hold: Hold, start: Start) -> None:
    """Answer the items that come through a pipe after the function, until None comes or the pipe ends."""
    _start(parent, hold, start)
    with suppress(EOFError):
        guarded: Guarded[Any, Any] = pipe.recv()
        while (task := pipe.recv()) is not None:
            _answer(pipe, guarded, *task)


def _answer(pipe: Connection, guarded: Guarded[Any, Any], item: Any) -> None:
    try:
        pipe.send(guarded(item))
    except MemoryError as error:  # of packing the result
        pipe.send(_failed(item, error))
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)).rstrip())  # the traceback itself stays here
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:  # it cannot be made again from its arguments
            error = RuntimeError(error.__notes__[-1])
        pipe.send(_Raised(error))


def _start(parent: Parent, hold: Hold, start: Start) -> None:
    if start == "fork":
        gc.freeze()  # what is inherited stays shared: a collection would write to, and so copy, all of it
        parent.hold_to()  # a parent that is killed cannot tell its workers to end, and they would wait for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default kills the process even inside a decoder
    limit = min(int(hold.memory_gb * 2**30), sys.maxsize)  # what the system call takes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    if hold.apart:
        confine()
    if start != "fork":  # the server of processes is the parent for the kernel, and it lives as long as we do
        threading.Thread(target=_end_with_starter, name="parent", daemon=True).start()


def _end_with_starter() -> None:
    if (starter := parent_process()) is not None:
        starter.join()
        os.kill(os.getpid(), signal.SIGKILL)


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
