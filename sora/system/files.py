"""Writes files atomically: staged beside the target, synced, then renamed, so that a file is complete or does not exist."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sora.gate.files import opened
from sora.gate.texts import read_json as read_json  # the counterpart of write_json
from sora.system.locks import alone_making, short
from sora.system.processes import alive

STAGING = ".staging-"
LONGEST_NAME = 255  # bytes, on usual file systems
_UMASK = os.umask(0o077)  # the only way to read it is to set it
os.umask(_UMASK)


class NotEncoded(ValueError):
    """Raised for latents or caption states that `sora encode` has yet to make, for the VAE and the text encoder of a run.

    folder: the dataset's, so that a caller that knows the run can name the whole command.
    """

    def __init__(self, message: str, folder: Path | str) -> None:
        super().__init__(message)
        self.folder = Path(folder)


def called(folder: Path) -> str:
    """The name of a folder, also if it is written as `.` or `..`."""
    return os.path.basename(os.path.abspath(folder))


def local(path: Path) -> str:
    """A path that other libraries do not take for a URL: pyarrow and fsspec do so if a relative name has a colon or two slashes."""
    return os.path.abspath(path)


def refuse_unwritable(path: Path, *, key: str, suffix: str) -> None:
    """Raise ValueError for a file that could not be written at the end of the work: it is a folder or no regular file, or is read-only."""
    if path.is_dir() or path.suffix.lower() != suffix:
        raise ValueError(f"{key}={path} is {'a folder' if path.is_dir() else f'no {suffix}'}; name a file that ends with {suffix}")
    if not may_write(path.parent):
        raise ValueError(f"{key}={path} cannot be written: {path.parent} is read-only or no folder; name another place")


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy the named files of a folder and nothing else: a stranger's folder may have links to this user's files, pipes that block, and
    sparse files as large as a disk. `target` is created if needed.

    Raises:
        ValueError: one is no regular file in `source`.
    """
    target.mkdir(exist_ok=True)
    for name in names:
        with opened(source / name, within=source) as file, named_errors(target / name), open(target / name, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """A context in which an error of a full disk, which names no file by itself, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename is None:
            error.filename = str(path)
        raise


def refuse_no_file(path: Path, named: str) -> None:
    """Raise ValueError if the file to write is a folder, pipe, socket or device: as root, renaming over /dev/null would replace it for all
    programs of the machine. named: the path as on the command line, as in output=FILE."""
    try:
        kind = os.stat(path).st_mode
    except OSError:  # the file does not exist
        return
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a socket or a device"
        raise ValueError(f"{named} is {what}, and no file can be put in its place; name another file")


def may_write(folder: Path) -> bool:
    """Whether files can be created in a folder, which may not exist yet."""
    return blocked(folder / "file") is None


def blocked(path: Path) -> str | None:
    """Why no file or folder can be created at a path that does not exist; None if it can."""
    there = next(place for place in path.absolute().parents if os.path.lexists(place))
    if there.is_symlink() and not there.exists():
        return f"{there} is a link to nowhere"
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        # Tried, because permissions do not hold for root, nor tell of read-only mounts and kernel file systems (/proc).
        tempfile.TemporaryFile(dir=there, prefix=STAGING).close()
    except OSError as error:
        return f"{there} takes no new file or folder ({error.strerror})"
    return None


def refuse_blocked(places: Mapping[str, str]) -> None:
    """Raise ValueError for the first path, by key, that a command is to write and that neither exists nor can be created."""
    for key, place in places.items():
        path = Path(place)
        if long := [part for part in path.parts if len(os.fsencode(part)) > LONGEST_NAME]:
            raise ValueError(f"{key}={place}: {long[0][:40]}… is longer than the {LONGEST_NAME} bytes that a name may have")
        if path.exists() and not path.is_dir():
            refuse_no_file(path, f"{key}={place}")
        if not path.exists() and (why := f"{path} is a link to nowhere" if path.is_symlink() else blocked(path)):
            raise ValueError(f"{key}={place} cannot be made: {why}; name another {key}=")


def refuse_read_only(place: Path, named: str, *, advice: str = "name another place, or change its permissions") -> None:
    """Raise ValueError, before any work, for a folder that is read-only, or a file or folder that cannot be created. named: the path as on
    the command line, as in output=FOLDER."""
    folder = place if place.is_dir() else place.parent
    if not may_write(folder):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        raise ValueError(f"{named}: {there} cannot be written to; {advice}")


def sync(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def let_read(path: Path) -> None:
    """Give a file the permissions of this user's other files, because colleagues and servers read results. Libraries such as safetensors
    make files that only the user can read."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o600 != 0o666 & ~_UMASK:
        os.chmod(path, 0o666 & ~_UMASK)


def staging_of(path: Path) -> Path:
    """The path at which a file or folder is made before it is renamed; unique to this process, also among machines."""
    return path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}-{short(path.name)}")


@contextmanager
def whole_file(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A context with a staging path to write to. On a clean exit it is renamed to `path`; on an error nothing is left.

    lasting: synced, so that it is whole after a power failure, too; not needed where a damaged file is noticed and can be made again.
    """
    path = Path(path)
    refuse_no_file(path, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_of(path)
    try:
        with named_errors(path):
            yield staging
            let_read(staging)
            if lasting:
                sync(staging)
            os.replace(staging, path)
            if lasting:
                sync(path.parent)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> int:
    """Remove the staging files in and below a folder that killed processes left; return how many.

    If several machines share the folder, a process of another one may have the same number: files younger than an hour stay.
    """
    found = 0
    for path in Path(folder).rglob(f"{STAGING}*"):
        owner = path.name.removeprefix(STAGING).split("-")[0]
        with suppress(FileNotFoundError):  # another process may sweep at the same time
            old = time.time() - path.stat().st_mtime > 3600
            if old and path.is_file() and owner.isdigit() and not alive(int(owner)):
                path.unlink()
                found += 1
    return found


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """`whole_file` for a new folder. Raises ValueError if the folder exists, or another process is making it.

    Files of processes that died while they made it are removed.
    """
    path = Path(path)
    refuse_there(path)
    with alone_making(path) as alone:
        refuse_there(path)  # another process may have finished it meanwhile
        for stale in path.parent.glob(f"{STAGING}*-{glob.escape(short(path.name))}") if alone else ():
            shutil.rmtree(stale, ignore_errors=True)
        staging = staging_of(path)
        staging.mkdir()
        try:
            with named_errors(path):
                yield staging
                for inner in sorted(staging.rglob("*")):
                    let_read(inner)
                    sync(inner)
                sync(staging)
                os.rename(staging, path)
                sync(path.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def refuse_there(path: Path) -> None:
    """Raise ValueError if a folder that is to be created exists, empty or not; also for a broken link."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists already; remove it or name another folder")


def refuse_nested(output: Path, read: Path, *, key: str) -> None:
    """Raise ValueError for a folder to be created inside a folder that is read (key= names it), or around it."""
    made, there = (Path(os.path.realpath(path)) for path in (output, read))  # realpath leaves a link to itself as it is
    if made != there and (made.is_relative_to(there) or there.is_relative_to(made)):
        first, second = (f"output={output}", f"{key}={read}") if made.is_relative_to(there) else (f"{key}={read}", f"output={output}")
        raise ValueError(f"{first} lies within {second}; what is made and what it is made from stay apart: name another output=")


def refuse_within(output: Path) -> None:
    """Raise ValueError for a run or a dataset inside another one, because each is moved, copied and removed as a whole."""
    for place in Path(os.path.realpath(output)).parents:
        for mark, what in (("dataset.json", "a dataset"), ("run.json", "a run")):
            if (place / mark).is_file():
                raise ValueError(f"output={output} lies within {place}, which is {what}; name a folder outside of it: another output=")


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with keys in the given order; NaN raises an error, because other readers refuse it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def file_hash(path: Path, *, most: int | None = None) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises ValueError if it is no regular file, or has more than `most` bytes: a sparse file of a
    terabyte takes no room on a disk."""
    with opened(path) as file:
        if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"{path} has {size:,} bytes, and {most:,} are the most that such a file has")
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text, hexadecimal; the key of caption caches."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
