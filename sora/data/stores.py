"""Where the bytes of shards lie: in the dataset's folder, in another one, or behind a URL that gives ranges.

`remote.json` in a dataset's folder says that its shards lie elsewhere (the metadata are always here):

    {"url": "s3://bucket/set", "cache": "/scratch/shards", "cache_mb": 102400, "fetch_after": 4}

Of a URL, clips are read by range. A shard that a process has read `fetch_after` clips of is fetched whole into `cache` (null: never),
which holds at most `cache_mb`, is shared by all processes of a machine, and gives up what was used longest ago.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from sora.data.tars import ByteFile
from sora.gate.files import regular
from sora.gate.forms import Fields, Maybe, count, fitting, real, text
from sora.storage import STAGING, read_json, write_json

REMOTE = "remote.json"
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss", "memory")
_OPEN_FILES = 64
_TRIES, _PAUSE = 4, 0.5  # seconds, doubled each time
_CHUNK = 8 << 20
_CACHED = f"{'[0-9a-f]' * 32}.tar"  # files of a `ShardCache`
FORM = Fields({"url": text}, may={"cache": Maybe(text), "cache_mb": real(0), "fetch_after": Maybe(count)}, closed=True)  # of remote.json
_STATE = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "md5")  # as fsspec's stores say it
Result = TypeVar("Result")


@runtime_checkable
class Store(Protocol):
    """Files by name, read anywhere in them. `remote`: every look at one costs a connection."""

    remote: bool

    def place(self, name: str) -> str: ...

    def known_size(self, name: str) -> int | None: ...

    def stamp(self, name: str) -> str: ...

    def read(self, name: str, offset: int, size: int) -> bytes: ...

    def open(self, name: str) -> tuple[ByteFile, int]: ...

    def forget(self, name: str) -> bool: ...

    def close(self) -> None: ...


class LocalStore:
    """Files of a folder, read with `pread`; at most 64 stay open.

    `pread` moves no file position, so forked workers may share what their parent opened.
    """

    remote = False

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._handles: OrderedDict[str, int] = OrderedDict()

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def known_size(self, name: str) -> int | None:
        """Of a file in bytes; None if there is none."""
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def stamp(self, name: str) -> str:
        """Of a file's state: another one after it was written again; "" if there is none."""
        try:
            about = (self.folder / name).stat()
        except OSError:
            return ""
        return f"{about.st_size} {about.st_mtime_ns}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A missing or shorter file is a `ValueError` that names it."""
        try:
            return pread(self._handle(name), self.folder / name, offset, size)
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error.strerror}") from None

    def open(self, name: str) -> tuple[ByteFile, int]:
        """The file from its beginning, and its size."""
        try:
            file = os.fdopen(regular(self.folder / name), "rb", buffering=1 << 18)  # the caller closes it
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error.strerror}") from None
        return file, os.fstat(file.fileno()).st_size

    def forget(self, name: str) -> bool:
        """Nothing is kept of a file, so there is nothing to try again."""
        return False

    def _handle(self, name: str) -> int:
        if name in self._handles:
            self._handles.move_to_end(name)
            return self._handles[name]
        self._handles[name] = regular(self.folder / name)
        if len(self._handles) > _OPEN_FILES:
            _, oldest = self._handles.popitem(last=False)
            os.close(oldest)
        return self._handles[name]

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self):
        return _local, (self.folder,)  # open files do not travel to another process, which opens its own once


def pread(handle: int, path: Path | str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of an open file; a shorter file is a `ValueError` that names it."""
    length = os.fstat(handle).st_size
    if offset < 0 or size < 0 or offset + size > length:  # before memory is taken for what an index may claim
        raise ValueError(f"{path} is cut short: bytes {offset} to {offset + size} are wanted, it has {length}")
    parts, missing = [], size
    while missing > 0:
        part = os.pread(handle, missing, offset + size - missing)
        if not part:
            raise ValueError(f"{path} is cut short: bytes {offset} to {offset + size} are wanted, it had {length}")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


@dataclass(frozen=True)
class ShardCache:
    """Whole shards in a folder of this machine, together at most `max_bytes`, shared by its processes; the least recently used goes.

    One shard is fetched at a time; who finds another process at it reads on by range. A dataset's remote.json names the folder, and the
    dataset may be a stranger's: nothing in the folder is touched but files of a cache's own names.
    """

    folder: Path
    max_bytes: int

    def path(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"

    def read(self, url: str, offset: int, size: int) -> bytes | None:
        """None if the shard is not here (any more)."""
        path = self.path(url)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            os.utime(handle)
            return pread(handle, path, offset, size)
        except ValueError:  # shorter than the shard
            self.drop(url)
            return None
        finally:
            os.close(handle)  # a shard that is given up must not live on in an open file

    def fetch(self, url: str, size: int, copy: Callable[[Path], None]) -> bool:
        """Make room and let `copy` write the shard; whether it is here now."""
        if size > self.max_bytes:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.path(url).is_file():
                return True
            self._make_room(size)
            staging = self.folder / f"{STAGING}{self.path(url).name}"
            try:
                copy(staging)
                if staging.stat().st_size != size:
                    return False
                os.replace(staging, self.path(url))
            finally:
                staging.unlink(missing_ok=True)
            return True

    def drop(self, url: str) -> bool:
        try:
            self.path(url).unlink()
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int) -> None:
        """The lock is held, so what is staged was left behind by a process that was killed."""
        for staging in self.folder.glob(f"{STAGING}{_CACHED}"):
            staging.unlink(missing_ok=True)
        kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob(_CACHED))
        used = sum(length for _, length, _ in kept)
        for _, length, path in kept:
            if used + size <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            used -= length


class RemoteStore:
    """Files below a URL, read by range through fsspec, with a cache of whole ones.

    A file that is not there is a `ValueError`; a place that does not answer after four tries, or gives no ranges, is a
    `ConnectionError`, which stops a run: it is no fault of the clip.
    """

    remote = True

    def __init__(self, url: str, *, cache: ShardCache | None, fetch_after: int | None):
        self.url, self.cache, self.fetch_after = url.rstrip("/"), cache, fetch_after
        scheme, found, _ = url.partition("://")
        if not found or scheme not in SCHEMES or "::" in url:
            raise ValueError(f"{url!r} is no URL that is read from; it begins with one of {', '.join(f'{one}://' for one in SCHEMES)}")
        self._reads: Counter[str] = Counter()
        self._opened: tuple[int, Any] | None = None

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def known_size(self, name: str) -> int | None:
        """Not asked for: opening an index makes no connection."""
        return None

    def stamp(self, name: str) -> str:
        """Of a file's state, as far as the place tells it: its size, and its ETag or time; "" if there is no such file."""
        url = self.place(name)
        try:
            about = self._tried(url, lambda files: files.info(url))
        except ValueError:
            return ""
        return " ".join(str(about[key]) for key in _STATE if about.get(key) is not None)

    def read(self, name: str, offset: int, size: int) -> bytes:
        url = self.place(name)
        if self.cache is not None:
            found = self.cache.read(url, offset, size)
            if found is None and self.fetch_after is not None and self._reads[name] >= self.fetch_after and self._fetch(url):
                found = self.cache.read(url, offset, size)
            if found is not None:
                return found
        self._reads[name] += 1
        found = self._tried(url, lambda files: files.cat_file(url, start=offset, end=offset + size)) if size else b""
        if len(found) != size:
            told = f"{url} gave {len(found)} bytes instead of {size} from {offset}"
            if len(found) > size:
                raise ConnectionError(f"{told}: it does not answer ranges; fetch the shards")
            raise ValueError(f"{told}: the shard is cut short")
        return found

    def open(self, name: str) -> tuple[ByteFile, int]:
        url = self.place(name)
        size = int(self._tried(url, lambda files: files.size(url)) or 0)
        return self._tried(url, lambda files: files.open(url, "rb", block_size=_CHUNK)), size

    def forget(self, name: str) -> bool:
        """Drop a cached shard, since its bytes are not what the index says; whether there was one."""
        return self.cache is not None and self.cache.drop(self.place(name))

    def names(self, pattern: str) -> list[str]:
        """The files here that fit a pattern such as `*.tar`, in order."""
        found = self._tried(self.url, lambda files: files.glob(f"{self.url}/{pattern}"))
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def close(self) -> None:
        self._opened = None

    def _fetch(self, url: str) -> bool:
        assert self.cache is not None
        size = self._tried(url, lambda files: files.size(url))
        if size is None:
            return False
        return self.cache.fetch(url, int(size), lambda staging: self._tried(url, lambda files: files.get_file(url, str(staging))))

    def _files(self) -> Any:
        """The file system, one for each process: its connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                from fsspec.core import url_to_fs

                self._opened = (os.getpid(), url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)[0])
            except ImportError as error:
                raise ValueError(f"{self.url} needs a package that is not installed: {error}") from None
        return self._opened[1]

    def _tried(self, url: str, ask: Callable[[Any], Result]) -> Result:
        """Ask, and again after a pause if the place does not answer."""
        for attempt in range(_TRIES):
            try:
                return ask(self._files())
            except ValueError:
                raise
            except Exception as error:  # every package behind fsspec has errors of its own
                if isinstance(error, FileNotFoundError) and _is_missing(error):
                    raise ValueError(f"{url} does not exist") from None
                if attempt == _TRIES - 1:
                    why = error.__cause__ or error
                    raise ConnectionError(f"{url} could not be read in {_TRIES} tries: {type(why).__name__}: {why}") from error
                self._opened = None
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError

    def __reduce__(self):
        return _remote, (self.url, self.cache, self.fetch_after)


def _is_missing(error: FileNotFoundError) -> bool:
    """Whether the place said so: fsspec tells of a server of http that does not answer, or that failed, in the same way."""
    why = error.__cause__
    if type(why).__module__.startswith("aiohttp"):
        return getattr(why, "status", None) in (404, 410)
    return not isinstance(why, OSError) or isinstance(why, FileNotFoundError)


@lru_cache(maxsize=16)
def _local(folder: Path) -> LocalStore:
    return LocalStore(folder)


@lru_cache(maxsize=16)
def _remote(url: str, cache: ShardCache | None, fetch_after: int | None) -> RemoteStore:
    return RemoteStore(url, cache=cache, fetch_after=fetch_after)


class HereOrThere:
    """What lies in the dataset's own folder (latents, say), and everything else from the other store."""

    def __init__(self, here: LocalStore, there: Store):
        self.here, self.there, self.remote = here, there, there.remote

    def _of(self, name: str) -> Store:
        return self.here if (self.here.folder / name).is_file() else self.there

    def place(self, name: str) -> str:
        return self._of(name).place(name)

    def known_size(self, name: str) -> int | None:
        return self._of(name).known_size(name)

    def stamp(self, name: str) -> str:
        return self._of(name).stamp(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self._of(name).read(name, offset, size)

    def open(self, name: str) -> tuple[ByteFile, int]:
        return self._of(name).open(name)

    def forget(self, name: str) -> bool:
        return self._of(name).forget(name)

    def close(self) -> None:
        self.here.close()
        self.there.close()


def store_of(url: str, *, cache: str | None = None, cache_mb: float = 0, fetch_after: int | None = 4) -> LocalStore | RemoteStore:
    """The store of a folder's path or of a URL."""
    if "://" not in url:
        return LocalStore(url)
    kept = ShardCache(Path(cache), max_bytes=round(cache_mb * 2**20)) if cache else None
    return RemoteStore(url, cache=kept, fetch_after=fetch_after)


def open_store(folder: Path | str) -> Store:
    """Where the shards of a dataset's folder lie: in it, or where its remote.json says."""
    path = Path(folder) / REMOTE
    if not path.is_file():
        return LocalStore(folder)
    described = fitting(read_json(path, within=folder), FORM, str(path), "index the dataset again")
    return HereOrThere(LocalStore(folder), store_of(**described))


def write_remote(folder: Path, url: str, *, cache: str | None, cache_mb: float, fetch_after: int | None) -> None:
    """Say in a dataset's folder where its shards lie. A cache's path is kept whole, as who reads stands elsewhere."""
    kept = cache if cache is None else os.path.abspath(cache)
    write_json(Path(folder) / REMOTE, {"url": url, "cache": kept, "cache_mb": cache_mb, "fetch_after": fetch_after})
