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
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar

from sora.gate.confine import confine
from sora.system.processes import ASKING, Parent, born_deaf

AHEAD = 4  # results per process that may wait for an earlier one
_LATE = 60  # seconds beyond its time limit after which a process that did not end itself is killed from here
_ENDING = 5  # seconds that an idle process has to end
_OTHER = b""  # a message before another function and, twice, before the end; nothing is packed into so little
_NO_MEMORY = 76  # exit code of a process that lacked memory
_MEMORY = "it needs more memory than a process may take"
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


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Limits of a process in a pool. seconds: that an item may take; the process is killed then, whatever it is doing. memory_gb: of its
    address space. apart: it cannot open connections, start programs or write files, where the kernel supports this; not for functions that
    read files over a network."""

    seconds: float
    memory_gb: float
    apart: bool = True


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
    """`GuardedPool.in_order` of a pool that is there for this call alone."""
    with GuardedPool(workers, Hold(seconds=seconds, memory_gb=memory_gb, apart=apart), start=start) as pool:
        yield from pool.in_order(function, items)


class GuardedPool:
    """Computes a function for many items in at most `workers` processes (0: in this one, without limits). The processes live until `close`,
    so what one call has made them import is there for the next; calls come one after another.

    A `ValueError` of the function becomes the item's reason; any other exception is raised here. An item that takes over `hold.seconds` is
    given up, as another try would cost as much again. One whose process crashes or lacks memory, which items before it may have taken, is
    tried once more in a new process, then given up.

    start: how processes are started, as in `multiprocessing`. "fork" is quick, and wrong where this process has threads that may hold
    locks at that moment; "forkserver" starts them from a process without threads, which imports everything anew but the main module, so
    the function must be of another.
    """

    # There is no thread here. A process has one item at a time and its own pipe, so that its death concerns that item alone; the next items
    # are taken and packed while processes work, so that none waits for them.

    def __init__(self, workers: int, hold: Hold, *, start: Start = "fork") -> None:
        self.workers, self.hold, self.start = workers, hold, start
        self._function = _OTHER  # packed
        self._last = sys.maxsize  # the largest number of an item that may be begun
        self._ready: deque[_Task] = deque()
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def __enter__(self) -> GuardedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def as_done(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Outcome[Item, Result]]:
        """The outcome for every item, each as soon as it is there, so that no number of items waits for one that hangs."""
        self._last = sys.maxsize
        with closing(self._outcomes(function, items)) as outcomes:
            for _, done in outcomes:
                yield done

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Outcome[Item, Result]]:
        """The outcome for every item, in their order. While one takes long the other processes go on, until `AHEAD` outcomes per process
        wait for it."""
        self._last = AHEAD * self.workers
        first, waiting = 0, dict[int, Outcome[Item, Result]]()
        with closing(self._outcomes(function, items)) as outcomes:
            for number, done in outcomes:
                waiting[number] = done
                while first in waiting:
                    yield waiting.pop(first)
                    first += 1
                    self._last += 1

    def close(self) -> None:
        """End the processes. A later call starts others."""
        for worker in self._idle:
            worker.send(_OTHER, _OTHER)
        for worker in self._idle:
            worker.process.join(_ENDING)
        self._bury_all()
        atexit.unregister(self._kill)

    def _outcomes(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[int, Outcome[Item, Result]], None, None]:
        """Yield each item's number and outcome as soon as it is there."""
        if self.workers == 0:
            yield from enumerate(_plainly(function, item) for item in items)
            return
        assert not self._busy, "calls come one after another"
        self._function = _packed(function)
        left, taken, more = enumerate(items), 0, True
        ended: deque[tuple[int, Outcome[Item, Result]]] = deque()
        try:
            while True:
                takes = more and taken <= self._last and len(self._ready) < self.workers
                answers = self._answers(still=not (takes or ended))
                while self._ready and len(self._busy) < self.workers:
                    self._give(self._ready.popleft())
                ended.extend((answer.task.number, answer.outcome()) for answer in answers)  # unpacked while the processes go on
                if takes and not (ended and self._ready):
                    if more := (numbered := next(left, None)) is not None:
                        self._ready.append(_Task(*numbered, _packed(numbered[1])))
                        taken += 1
                elif ended:
                    yield ended.popleft()
                elif not (self._busy or self._ready):
                    return
        except BaseException:
            self._kill()  # nobody needs their results
            self._bury_all()
            raise

    def _give(self, task: _Task) -> None:
        """Give an item to a free process, or to a new one if none is free or it is given again."""
        with born_deaf():  # in a new process Ctrl-C would print a traceback until `_start` runs
            worker = self._idle.pop() if self._idle and not task.again else self._new()
            self._busy[worker.pipe] = worker
        worker.task, worker.until = task, time.monotonic() + self.hold.seconds + _LATE
        if worker.function != self._function:
            worker.send(_OTHER, self._function)
            worker.function = self._function
        worker.send(task.packed)

    def _new(self) -> _Worker:
        if not (self._busy or self._idle):
            atexit.register(self._kill)  # before multiprocessing waits for its processes, which wait for items
        context = get_context(self.start)
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, Parent.here(), self.hold, self.start))
        try:
            with _nameless_main() if self.start == "forkserver" else nullcontext():
                process.start()
        finally:
            theirs.close()  # else the end of the process would not end its pipe
        return _Worker(process, ours)

    def _answers(self, *, still: bool) -> list[_Answered]:
        """What processes have answered, packed, and the tasks that died. still: wait for one; the list may be empty even so."""
        if not self._busy:
            return []
        patience = max(0.0, min(worker.until for worker in self._busy.values()) - time.monotonic()) if still else 0.0
        ready = [pipe for pipe in wait(list(self._busy), patience) if isinstance(pipe, Connection)]
        late = [pipe for pipe, worker in self._busy.items() if worker.until < time.monotonic() and not pipe.poll()]
        found: list[_Answered] = []
        for pipe in dict.fromkeys((*ready, *late)):
            worker, answer = self._busy[pipe], None
            if pipe not in late:
                with suppress(EOFError, OSError):  # nothing, or not all of it, came
                    answer = pipe.recv_bytes()
            if answer is not None:
                self._idle.append(worker)  # before it is out of `_busy`, so that `_kill` finds it at any moment
                found.append(_Answered(worker.task, packed=answer))
            else:
                worker.bury()
                found += self._after_death(worker, late=pipe in late)
            del self._busy[pipe]
        return found

    def _after_death(self, worker: _Worker, *, late: bool) -> list[_Answered]:
        """What a dead process leaves: its item's reason, or nothing if that is tried once more."""
        task, code = worker.task, worker.process.exitcode
        if late or code == -signal.SIGALRM:
            return [_Answered(task, reason=f"it took over {self.hold.seconds:g} seconds")]
        if not task.again:
            self._ready.appendleft(replace(task, again=True))
            return []
        return [_Answered(task, reason=_MEMORY if code == _NO_MEMORY else "the process that read it crashed, twice")]

    def _kill(self) -> None:
        """Kill all processes: after Ctrl-C, or an error, nobody needs their results."""
        for worker in (*self._busy.values(), *self._idle):
            worker.process.kill()

    def _bury_all(self) -> None:
        for worker in (*self._busy.values(), *self._idle):
            worker.bury()
        self._busy.clear()
        self._idle.clear()
        self._ready.clear()


@dataclass(frozen=True)
class _Task:
    """An item, its place among all, and it as it is sent. again: whether a process has died of it."""

    number: int
    item: Any
    packed: bytes
    again: bool = False


@dataclass
class _Worker:
    """A process, the pipe to it, the function that it has, and the item that it computes. until: when it must have answered, by
    `time.monotonic`."""

    process: BaseProcess
    pipe: Connection
    function: bytes = _OTHER
    task: _Task = _Task(0, None, b"")
    until: float = 0.0

    def send(self, *messages: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died meanwhile, which its missing answer will tell
            for message in messages:
                self.pipe.send_bytes(message)

    def bury(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(frozen=True)
class _Answered:
    """A process's answer about a task, packed, or the reason why there is none."""

    task: _Task
    packed: bytes = b""
    reason: str = ""

    def outcome(self) -> Outcome:
        if self.reason:
            return Outcome(self.task.item, None, self.reason, died=True)
        answer = ForkingPickler.loads(self.packed)
        if isinstance(answer, _Raised):
            raise answer.error
        return Outcome(self.task.item, answer.result, answer.reason)


class _Result(NamedTuple):
    """The answer of a process: a result, or the reason why there is none."""

    result: Any
    reason: str = ""


class _Raised(NamedTuple):
    """The answer of a process whose function raised an exception that ends the whole call."""

    error: BaseException


def _packed(value: Any) -> bytes:
    return bytes(ForkingPickler.dumps(value))


def _plainly(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(item, function(item))
    except MemoryError:
        return Outcome(item, None, _MEMORY, died=True)
    except ValueError as error:
        return Outcome(item, None, str(error))


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


# ---- in the process of a worker


def _work(pipe: Connection, parent: Parent, hold: Hold, start: Start) -> None:
    """Answer the items that come through a pipe, by the function that came last, until the end comes or the pipe ends."""
    _start(parent, hold, start)
    function: Callable[[Any], Any] = partial(_raise, RuntimeError("no function came"))
    with suppress(EOFError):
        while True:
            if (said := pipe.recv_bytes()) != _OTHER:
                pipe.send_bytes(_answer(function, said, hold.seconds))
            elif (said := pipe.recv_bytes()) == _OTHER:
                return
            else:
                del function  # what it holds, such as a network, goes first
                function = _function(said)


def _function(packed: bytes) -> Callable[[Any], Any]:
    """A function that was sent; one that raises the error, if it cannot be made here."""
    try:
        return ForkingPickler.loads(packed)
    except Exception as error:
        return partial(_raise, error)


def _raise(error: BaseException, item: Any) -> NoReturn:
    raise error


def _answer(function: Callable[[Any], Any], packed: bytes, seconds: float) -> bytes:
    """The packed answer about an item. Ends this process if it takes over `seconds`, or more memory than there is."""
    try:
        item = ForkingPickler.loads(packed)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            found = _Result(function(item))
        except ValueError as error:
            found = _Result(None, str(error))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return _packed(found)
    except MemoryError:
        os._exit(_NO_MEMORY)
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)).rstrip())  # the traceback itself stays here
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:  # it cannot be made again from its arguments
            error = RuntimeError(error.__notes__[-1])
        return _packed(_Raised(error))


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
