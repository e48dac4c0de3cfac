"""Injected faults for anything that writes files: die or run out of disk at the n-th boundary, disks of any size, flipped bits.

The fixture `faults` gives them to any test:

    for at in faults.kills(lambda: begin(folder)): …      # the work was killed at its first boundary, its second, …; what is left?
    for room in faults.disks(lambda: begin(folder)): …    # it ran on a disk with so many bytes left
    for path, position in faults.flips(folder): …         # a bit of a file is not what it was
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


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


@contextmanager
def terminated(owner: type, name: str, *, at: int) -> Iterator[None]:
    """This process is sent a SIGTERM in call number `at` of a method."""
    plain, calls = getattr(owner, name), itertools.count(1)

    def signalling(self, *args):
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, signalling)
        yield


class SmallFile:
    """A file on a disk that takes no more than `left[0]` bytes from all its files together."""

    def __init__(self, file, left: list[int]) -> None:
        self._file, self._left = file, left

    def write(self, data):
        size = len(data.encode() if isinstance(data, str) else data)
        fitting = min(size, self._left[0])
        self._left[0] -= fitting
        if fitting == size:
            return self._file.write(data)
        self._file.write(data[:fitting])
        self._file.flush()
        return full()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)


@contextmanager
def room(size: int) -> Iterator[list[int]]:
    """A disk with `size` bytes left for all that is written in this context; gives what is left of them."""
    opened, left = builtins.open, [size]

    def small_open(file, mode="r", *args, **kwargs):
        made = opened(file, mode, *args, **kwargs)
        return SmallFile(made, left) if set(mode) & set("wax+") else made

    builtins.open = io.open = small_open
    try:
        yield left
    finally:
        builtins.open = io.open = opened


def largest_file(size: int) -> None:
    """From now on the kernel takes no byte of a file beyond `size` from this process (EFBIG): for a child."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Faults:
    """What the fixture gives. begin: makes a fresh place, and gives the work to do there."""

    def kills(self, begin: Callable[[], Callable[[], object]]) -> Iterator[int]:
        """The work in a child that is killed at each boundary in turn, until it comes through."""
        for at in itertools.count(1):
            work = begin()

            def doomed(work: Callable[[], object] = work, at: int = at) -> None:
                with injected(Countdown(at, die)):
                    work()

            code = in_child(doomed)
            if code == 0:
                return
            assert code == -signal.SIGKILL, code
            yield at

    def disks(self, begin: Callable[[], Callable[[], object]], *, sizes: int) -> Iterator[int]:
        """The work on disks with ever more bytes left, `sizes` of them, all too few."""
        work = begin()
        with room(1 << 40) as left:
            work()
        needed = (1 << 40) - left[0]
        for size in (needed * number // sizes for number in range(sizes)):
            work = begin()
            with room(size), pytest.raises(OSError, match="No space left"):
                work()
            yield size

    def files(self, begin: Callable[[], Callable[[], object]], sizes: Iterable[int]) -> Iterator[int]:
        """The work in a child whose files the kernel does not let grow beyond each of `sizes`; the codes it ends with."""
        for size in sizes:
            work = begin()

            def limited(work: Callable[[], object] = work, size: int = size) -> None:
                largest_file(size)
                try:
                    work()
                except OSError as error:
                    os._exit(error.errno)

            yield in_child(limited)

    def flips(self, folder: Path, *, stride: int = 1) -> Iterator[tuple[Path, int]]:
        """Every `stride`-th byte of every file of a folder with one bit flipped, one at a time; each is put back."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            whole = path.read_bytes()
            for position in range(0, len(whole), stride):
                path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
                yield path, position
            path.write_bytes(whole)
