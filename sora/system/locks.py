"""Places that one process writes at a time. The locks are the kernel's: a process that dies, however, holds nothing.

A lock is the file `.lock` in a folder, or `.lock-NAME` beside a folder that is made whole and then given its name. It is gone when the work
is done, and what a dead process left of it is taken over by the next. It holds between machines where the file system passes flock on: NFS
and Lustre do unless they are mounted with `nolock`, `local_lock` or `localflock`. Where a place cannot be locked at all, that is said in a
line and the work goes on. Nothing that only reads takes a lock, so results can be read from a disk that nobody may write.
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


@contextmanager
def alone_in(
    folder: Path, doing: str, *, name: str = NAME, advice: str = ADVICE, shared: bool = False, patience: float = 0.0
) -> Iterator[bool]:
    """Hold a folder for this process, making it if it is not there; yields whether it is held, False where its disk has no locks.

    doing: for the message, as in "training in". name: of the lock's file, where several things may be done in a folder at once. shared:
    hold it beside others that share it, against one that wants it alone. patience: seconds to wait for one who holds it for a moment only.
    A folder that was made and is still empty is gone at the end.

    Raises:
        ValueError: another process holds it; the message says which, on which machine and since when.
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
    """The same for a file or folder that this process makes elsewhere, and then gives its name."""
    place = Path(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _holding(place.with_name(f"{NAME}-{short(place.name)}"), f"making {place}", advice) as held:
        yield held


def short(name: str) -> str:
    """A file's name, or its hash where a few words before it would make it longer than the 255 bytes that a name may have."""
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
        if handle in _held:  # not in a process that was forked meanwhile
            if locked and (not shared or _upgraded(handle)):
                file.unlink(missing_ok=True)  # while it is held: who opened it before sees that it is gone, and opens the next one
            _held.discard(handle)
            os.close(handle)


def _upgraded(handle: int) -> bool:
    """Whether nobody else shares the lock, which is ours alone then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(file: Path, doing: str, advice: str, how: int, *, patience: float) -> tuple[int, bool]:
    """A handle of the lock's file, and whether the lock is ours."""
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
            raise ValueError(f"another process{f' ({who})' if who else ''} is {doing}; {advice}") from None
        except OSError as error:  # some network file systems have no locks
            print(f"{file.parent} cannot be locked ({error.strerror}); make sure that no other process is {doing}")
            return handle, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                with suppress(OSError):  # another user's file, or a full disk: nobody needs the note
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}\n".encode(), 0)
                return handle, True
        os.close(handle)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # who held it before had made the folder, wrote nothing and took it back
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # maybe another user's, in a folder that is shared
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY)


def _let_go() -> None:
    """A forked process holds no lock: it may outlive the one that took it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
