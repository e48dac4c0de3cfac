"""Injected faults for anything that writes files: die, or run out of disk, at the n-th boundary."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Countdown:
    """Counts boundaries (writes, in halves; syncs; renames; new and removed folders) and calls `fault` at number `at`."""

    def __init__(self, at: int, fault: Callable[[], None]) -> None:
        self.at, self.fault, self.seen = at, fault, 0

    def tick(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.fault()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TornFile:
    """A file whose every write reaches the disk in two halves, with a boundary after each."""

    def __init__(self, file, countdown: Countdown) -> None:
        self._file, self._countdown = file, countdown

    def write(self, data):
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            self._file.write(piece)
            self._file.flush()
            self._countdown.tick()
        return len(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


@contextmanager
def injected(countdown: Countdown) -> Iterator[Countdown]:
    """Every file operation in this context counts."""
    opened, plain = builtins.open, {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")}

    def torn_open(file, mode="r", *args, **kwargs):
        made = opened(file, mode, *args, **kwargs)
        return TornFile(made, countdown) if set(mode) & set("wax+") else made

    def counted(name):
        def call(*args, **kwargs):
            countdown.tick()
            result = plain[name](*args, **kwargs)
            if countdown.fault is die:  # a disk that is full says so before it has done the thing
                countdown.tick()
            return result

        return call

    builtins.open = io.open = torn_open
    for name in plain:
        setattr(os, name, counted(name))
    try:
        yield countdown
    finally:
        builtins.open = io.open = opened
        for name, original in plain.items():
            setattr(os, name, original)


def in_child(work: Callable[[], None]) -> int:
    """Do `work` in a forked process; its exit status: 0 done, -9 killed, 1 raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
