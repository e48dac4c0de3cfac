"""Locks on folders, so that one process at a time writes to each. They are the kernel's, so a dead process holds none.

A lock is a file: `.lock` in a folder, or `.lock-NAME` beside a folder that is made under another name and then renamed. It is removed at
the end of the work; the next process takes over one that a dead process left. Locks hold between machines if the file system supports
flock: NFS and Lustre do, unless they are mounted with `nolock`, `local_lock` or `localflock`. If a folder cannot be locked, a line says so
and the work goes on. Readers take no lock, so results can be read from a read-only disk.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".lock"
ADVICE = "wait for it or stop it, or name another output"
_held: set[int] = set()


class LockHeld(ValueError):
    """Raised if another process holds a lock."""


@contextmanager
def alone_in(
    folder: Path, doing: str, *, name: str = NAME, advice: str = ADVICE, shared: bool = False, patience: float = 0.0
) -> Iterator[bool]:
    """A context that locks a folder for this process, and creates it if needed; yields False if its disk has no locks.

    doing: for the message, as in "training in". name: of the lock's file, if several things may be done in a folder at once. shared: share
    the lock with other sharers, but not with a process that needs it alone. patience: seconds to wait for a process that holds it briefly.
    A folder that was created here and is empty at the end is removed.

    Raises:
        LockHeld: another process holds it; the message says which, on which machine and since when.
    """
    folder = Path(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _holding(folder / name, f"{doing} {folder}", advice, shared=shared, patience=patience) as held:
            yield held
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def alone_making(place: Path, *, advice: str = ADVICE) -> Iterator[bool]:
    """`alone_in` for a file or folder that this process makes under another name and then renames."""
    place = Path(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _holding(place.with_name(f"{NAME}-{short(place.name)}"), f"making {place}", advice) as held:
        yield held


def short(name: str) -> str:
    """A file's name, or a hash of it if it is so long that a prefix would exceed the 255 bytes of a name."""
    if len(os.fsencode(name)) <= 200:
        return name
    import hashlib

    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


@contextmanager
def _holding(file: Path, doing: str, advice: str, *, shared: bool = False, patience: float = 0.0) -> Iterator[bool]:
    handle, locked = _locked(file, doing, advice, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience=patience)
    _held.add(handle)
    try:
        yield locked
    finally:
        if handle in _held:  # false in a forked process
            if locked and (not shared or _upgraded(handle)):
                file.unlink(missing_ok=True)  # removed while locked: a process that has opened it sees that it is gone, and opens a new one
            _held.discard(handle)
            os.close(handle)


def _upgraded(handle: int) -> bool:
    """Whether no other process shares the lock; it is then exclusive."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(file: Path, doing: str, advice: str, how: int, *, patience: float) -> tuple[int, bool]:
    """A handle of the lock's file, and whether it is locked."""
    end = time.monotonic() + patience
    while True:
        handle = _opened(file)
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            if time.monotonic() < end:
                time.sleep(0.02)
                continue
            raise LockHeld(f"another process{f' ({who})' if who else ''} is {doing}; {advice}") from None
        except OSError as error:  # some network file systems have no locks
            print(f"{file.parent} cannot be locked ({error.strerror}); make sure that no other process is {doing}")
            return handle, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                with suppress(OSError):  # another user's file, or a full disk: the note is not needed
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}\n".encode(), 0)
                return handle, True
        os.close(handle)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the last holder had created the folder and, as it was empty, removed it
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # possibly another user's file in a shared folder
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY)


def _let_go() -> None:
    """Close inherited lock files in a forked process, because it may outlive the process that locked them."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
