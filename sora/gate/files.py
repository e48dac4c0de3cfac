"""Opens files of unknown origin safely: only regular files, no writing through links, never more bytes than their kind has."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


def regular(path: Path | str, *, within: Path | str | None = None) -> int:
    """A file descriptor for reading a regular file; a pipe, socket or device is refused without blocking on it.

    within: the folder that links must not lead out of; None for a file that the user named, whose links are the user's own.

    Raises:
        ValueError: there is no such file, it is of another type, or a link leads out. Disk and permission errors are OSErrors.
    """
    if within is not None:
        refuse_outside(path, within)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist{' any more: it is a link to nowhere' if os.path.islink(path) else ''}") from None
    except OSError as error:
        if error.errno is not None and not os.path.exists(path):
            raise
        if stat.S_ISREG(os.stat(path).st_mode) or os.path.isdir(path):
            raise
        raise ValueError(f"{path} is a pipe, a socket or a device, and no file") from None  # opening a socket fails
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        os.set_blocking(handle, True)
        return handle
    os.close(handle)
    raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(kind) else 'a pipe, a socket or a device'}, and no file")


@contextmanager
def opened(path: Path | str, *, within: Path | str | None = None) -> Iterator[BufferedReader]:
    """A context with a regular file open for reading, see `regular`."""
    with open(regular(path, within=within), "rb") as file:
        yield file


def read(path: Path | str, *, most: int, within: Path | str | None = None) -> bytes:
    """The content of a regular file, see `regular`. Raises ValueError if it has more than `most` bytes."""
    with opened(path, within=within) as file:
        size = os.fstat(file.fileno()).st_size
        found = b"" if size > most else file.read(most + 1)
    if max(size, len(found)) > most:
        raise ValueError(f"{path} has {max(size, len(found)):,} bytes, and {most:,} are the most that such a file has")
    return found


def refuse_outside(path: Path | str, folder: Path | str) -> None:
    """Raise ValueError if a path below `folder`, existing or not, leads out of it through a link.

    The folder itself may be reached through links, as the user arranged it.
    """
    home, place = os.path.realpath(folder), os.path.realpath(path)
    if place != home and not place.startswith(home.rstrip(os.sep) + os.sep):
        raise ValueError(
            f"{path} is a link out of {folder}, to {place}: nothing is read or written through it, since who sent the folder may have "
            f"made it. Put there what it leads to; to keep all of it on another disk, move {folder} there and link that as a whole"
        )


def refuse_links_out(folder: Path | str, *, home: Path | str | None = None) -> None:
    """Raise ValueError if an entry of a folder is a link out of the folder, or out of `home`, which contains it. A folder that does not
    exist has no entries."""
    try:
        with os.scandir(folder) as entries:
            links = [entry.path for entry in entries if entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in links:
        refuse_outside(path, home or folder)


def below(home: Path | str, *parts: str) -> Path:
    """The path below a user's folder of a file or folder that the program writes or reads. Raises ValueError if a link on the way to it, or
    an entry of it, leads out of that folder."""
    path = Path(home, *parts)
    refuse_outside(path, home)
    refuse_links_out(path, home=home)
    return path


def appending(path: Path | str) -> int:
    """A file descriptor for appending; the file is created if needed. Raises ValueError if it is a link or no regular file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if os.path.islink(path):
        raise ValueError(f"{path} is a link, and nothing is written through one; put a file in its place")
    handle = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is a pipe, a socket or a device, and no file; remove it")
    return handle
