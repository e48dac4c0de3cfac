"""Opening files that may be anything: only regular ones, never for writing through a link, never more bytes than their kind has."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


def regular(path: Path | str, *, within: Path | str | None = None) -> int:
    """A handle to read a regular file with; a pipe, a socket or a device is refused without waiting for it.

    within: the folder that a link must not lead out of; None for a file that the user named, whose links are the user's own.

    Raises:
        ValueError: there is no such file, or it is of another kind, or leads out. Errors of the disk and of rights are OSErrors.
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
        raise ValueError(f"{path} is a pipe, a socket or a device, and no file") from None  # a socket cannot be opened at all
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        os.set_blocking(handle, True)
        return handle
    os.close(handle)
    raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(kind) else 'a pipe, a socket or a device'}, and no file")


@contextmanager
def opened(path: Path | str, *, within: Path | str | None = None) -> Iterator[BufferedReader]:
    """A regular file to read from, see `regular`."""
    with open(regular(path, within=within), "rb") as file:
        yield file


def read(path: Path | str, *, most: int, within: Path | str | None = None) -> bytes:
    """What a regular file holds, see `regular`. Raises ValueError where it has more than `most` bytes."""
    with opened(path, within=within) as file:
        size = os.fstat(file.fileno()).st_size
        found = b"" if size > most else file.read(most + 1)
    if max(size, len(found)) > most:
        raise ValueError(f"{path} has {max(size, len(found)):,} bytes, and {most:,} are the most that such a file has")
    return found


def refuse_outside(path: Path | str, folder: Path | str) -> None:
    """Raise ValueError where a file or folder below `folder`, there already or not, lies outside of it, by a link.

    The folder itself may be reached through links, as the user laid it out.
    """
    home, place = os.path.realpath(folder), os.path.realpath(path)
    if place != home and not place.startswith(home.rstrip(os.sep) + os.sep):
        raise ValueError(
            f"{path} is a link out of {folder}, to {place}: nothing is read or written through it, since who sent the folder may have "
            f"made it. Put there what it leads to; to keep all of it on another disk, move {folder} there and link that as a whole"
        )


def refuse_links_out(folder: Path | str, *, home: Path | str | None = None) -> None:
    """Raise ValueError where anything that lies right in a folder is a link out of it, or out of `home`, in which it lies. A folder that is
    not there holds none."""
    try:
        with os.scandir(folder) as entries:
            links = [entry.path for entry in entries if entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in links:
        refuse_outside(path, home or folder)


def below(home: Path | str, *parts: str) -> Path:
    """The path of a file or folder that the program makes or reads below one that the user named. Raises ValueError where a link on the
    way, or right in it, leads out of that folder."""
    path = Path(home, *parts)
    refuse_outside(path, home)
    refuse_links_out(path, home=home)
    return path


def appending(path: Path | str) -> int:
    """A handle to append to a file with, which is made if it is not there. Raises ValueError where it is a link, or no file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if os.path.islink(path):
        raise ValueError(f"{path} is a link, and nothing is written through one; put a file in its place")
    handle = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is a pipe, a socket or a device, and no file; remove it")
    return handle
