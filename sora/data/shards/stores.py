"""The stores that hold shards: the dataset's folder, another folder, or a URL that serves byte ranges.

`remote.json` in a dataset's folder says that its shards lie elsewhere (the metadata are always in the dataset's folder):

    {"url": "s3://bucket/set", "cache": "/scratch/shards", "cache_mb": 102400, "fetch_after": 4, "seal": "…"}

It is followed if it bears the seal of the user who reads (`sora data index` sets it), or if the command line allows the places that it
names; a stranger's dataset opens no connection and creates no folder (see `sora.gate.trust`).

From a URL, clips are read by range. Once a process has read `fetch_after` clips of a shard, the whole shard is fetched into `cache` (null:
never), which holds at most `cache_mb`, is shared by all processes of a machine, and evicts the least recently used shard.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from sora.data.shards.shard_cache import ShardCache, pread
from sora.data.shards.tar_reader import ByteFile
from sora.gate import credentials, trust
from sora.gate.files import regular
from sora.gate.forms import Fields, Maybe, count, fitting, real, text
from sora.gate.hosts import HostFile, UnfitAnswer, within
from sora.system.files import read_json, write_json

__all__ = ["LocalStore", "RemoteStore", "ShardCache", "Store", "open_store", "pread", "store_of", "write_remote"]

REMOTE = "remote.json"
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss", "memory")
_OPEN_FILES = 64
_TRIES, _PAUSE = 4, 0.5  # tries; seconds before the second one, doubled each time
_CHUNK = 8 << 20
FORM = Fields(
    {"url": text},
    may={"cache": Maybe(text), "cache_mb": real(0), "fetch_after": Maybe(count), "seal": Maybe(text)},
    closed=True,
)  # the form of remote.json
_USUAL = {"cache": None, "cache_mb": 0, "fetch_after": 4, "seal": None}
_STATE = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "md5")  # keys of a file's state in fsspec
Result = TypeVar("Result")


@runtime_checkable
class Store(Protocol):
    """Files by name, with reads at any offset. `remote`: every access to a file costs a connection."""

    remote: bool

    def place(self, name: str) -> str: ...

    def known_size(self, name: str) -> int | None: ...

    def stamp(self, name: str) -> str: ...

    def read(self, name: str, offset: int, size: int) -> bytes: ...

    def open(self, name: str) -> tuple[ByteFile, int]: ...

    def forget(self, name: str) -> bool: ...

    def close(self) -> None: ...


class LocalStore:
    """The files of a folder, read with `pread`; at most 64 stay open.

    `pread` moves no file position, so forked workers may share the files that their parent opened.
    """

    remote = False

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._handles: OrderedDict[str, int] = OrderedDict()

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def known_size(self, name: str) -> int | None:
        """The size of a file in bytes; None if there is no such file."""
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    def stamp(self, name: str) -> str:
        """A text that changes when a file is written again; "" if there is no such file."""
        try:
            about = (self.folder / name).stat()
        except OSError:
            return ""
        return f"{about.st_size} {about.st_mtime_ns}"

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file; a missing or shorter file raises `ValueError` with its name."""
        try:
            return pread(self._handle(name), self.folder / name, offset, size)
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error.strerror}") from None

    def open(self, name: str) -> tuple[ByteFile, int]:
        """The file, open at its beginning, and its size."""
        try:
            file = os.fdopen(regular(self.folder / name), "rb", buffering=1 << 18)  # the caller closes it
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error.strerror}") from None
        return file, os.fstat(file.fileno()).st_size

    def forget(self, name: str) -> bool:
        """Return False: no copy of the file is cached, so reading it again cannot help."""
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

    def __reduce__(self) -> tuple[Any, ...]:
        return _local, (self.folder,)  # a pickled store opens its own files in the other process


class RemoteStore:
    """Files below a URL, read by range through fsspec, with a cache of whole files.

    A file that does not exist raises `ValueError`; a server that does not answer after four tries, or serves no ranges, raises
    `ConnectionError`, which stops a run: the clip is not at fault.
    """

    remote = True

    def __init__(self, url: str, *, cache: ShardCache | None, fetch_after: int | None) -> None:
        self.url, self.cache, self.fetch_after = url.rstrip("/"), cache, fetch_after
        scheme, found, _ = url.partition("://")
        credentials.refuse(url, said_by="where shards lie")
        if not found or scheme not in SCHEMES or "::" in url:
            raise ValueError(f"{url!r} is no URL that is read from; it begins with one of {', '.join(f'{one}://' for one in SCHEMES)}")
        self._reads: Counter[str] = Counter()
        self._opened: tuple[int, Any] | None = None

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def known_size(self, name: str) -> int | None:
        """Return None without asking: opening an index makes no connection."""
        return None

    def stamp(self, name: str) -> str:
        """A text for a file's state as far as the server tells it: its size, and its ETag or time; "" if there is no such file."""
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
        return HostFile(self._tried(url, lambda files: files.open(url, "rb", block_size=_CHUNK)), url), size

    def forget(self, name: str) -> bool:
        """Drop a shard from the cache because its bytes do not match the index; return whether the cache had it."""
        return self.cache is not None and self.cache.drop(self.place(name))

    def names(self, pattern: str) -> list[str]:
        """The names of the files that match a pattern such as `*.tar`, in order."""
        found = self._tried(self.url, lambda files: files.glob(f"{self.url}/{pattern}"))
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def close(self) -> None:
        self._opened = None

    def _fetch(self, url: str) -> bool:
        assert self.cache is not None
        size = self._tried(url, lambda files: files.size(url))
        if size is None:
            return False

        def copy(staging: Path) -> None:
            self._tried(url, lambda files: files.get_file(url, str(staging), callback=within(int(size), url)))

        return self.cache.fetch(url, int(size), copy)

    def _files(self) -> Any:
        """The fsspec file system, one per process: its connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                from fsspec.core import url_to_fs

                more = {"client_kwargs": _settings(self.url)} if self.url.partition(":")[0] in ("http", "https") else {}
                self._opened = (os.getpid(), url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False, **more)[0])
            except ImportError as error:
                raise ValueError(f"{self.url} needs a package that is not installed: {error}") from None
        return self._opened[1]

    def _tried(self, url: str, ask: Callable[[Any], Result]) -> Result:
        """Send a request, and again after a pause if the server does not answer."""
        for attempt in range(_TRIES):
            try:
                return ask(self._files())
            except (ValueError, UnfitAnswer):
                raise
            except Exception as error:  # every package behind fsspec has its own errors
                if isinstance(error, FileNotFoundError) and _is_missing(error):
                    raise ValueError(f"{url} does not exist") from None
                if attempt == _TRIES - 1:
                    why = error.__cause__ or error
                    said = credentials.masked(str(why)) or "no answer in time"
                    raise ConnectionError(f"{url} could not be read in {_TRIES} tries: {type(why).__name__}: {said}") from error
                self._opened = None
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError

    def __reduce__(self) -> tuple[Any, ...]:
        return _remote, (self.url, self.cache, self.fetch_after)


def _settings(url: str) -> dict[str, Any]:
    from sora.gate.answers import settings  # the settings that http needs

    return settings(url)


def _is_missing(error: FileNotFoundError) -> bool:
    """Whether the server said that the file does not exist: fsspec raises the same error for an http server that fails to answer."""
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
    """A store that reads files of the dataset's own folder (latents, say) from there, and all others from another store."""

    def __init__(self, here: LocalStore, there: Store) -> None:
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
    """The store for a folder's path or a URL."""
    if "://" not in url:
        return LocalStore(url)
    kept = ShardCache(Path(cache), max_bytes=round(cache_mb * 2**20)) if cache else None
    return RemoteStore(url, cache=kept, fetch_after=fetch_after)


def open_store(folder: Path | str) -> Store:
    """The store of a dataset's shards: its folder, or the place that its remote.json names.

    Raises:
        ValueError: remote.json is damaged, or of another user, and the command line does not allow the places that it names.
    """
    path = Path(folder) / REMOTE
    if not path.is_file():
        return LocalStore(folder)
    described = _described(path)
    _refuse_stranger(path, described, described.pop("seal"))
    return HereOrThere(LocalStore(folder), store_of(**described))


def names_place(folder: Path, url: str) -> bool:
    """Whether a dataset's remote.json, of whatever user, names `url` as the place of its shards."""
    return (folder / REMOTE).is_file() and _described(folder / REMOTE)["url"].rstrip("/") == url.rstrip("/")


def _described(path: Path) -> dict[str, Any]:
    return _USUAL | fitting(read_json(path, within=path.parent), FORM, str(path), "index the dataset again")


def _refuse_stranger(path: Path, described: dict[str, Any], seal: str | None) -> None:
    """Raise ValueError for a remote.json that another user wrote, unless the command line allows what it names."""
    if trust.sealed(seal, REMOTE, described):
        return
    url, cache = described["url"], described["cache"]
    apart = [place for place in (url, cache) if place and not trust.allowed(place)]
    if apart and not ("://" not in url and not cache and trust.within(url, path.parent)):
        whose = "you have not indexed this dataset" if seal is None else f"its seal is not one of {trust.key_file()}"
        raise ValueError(
            f"{path} says that shards lie at {url}{f', to be kept in {cache}' if cache else ''}, and {whose}, so nothing is read there; "
            "if you trust that, make the place your own word once "
            f"(sora data index={shlex.quote(url)} output={shlex.quote(str(path.parent))}), or allow it now: {trust.words(*apart)}"
        )


def write_remote(folder: Path, url: str, *, cache: str | None, cache_mb: float, fetch_after: int | None) -> None:
    """Write a remote.json, with this user's seal, that says where a dataset's shards lie.

    The cache's path is made absolute, since later commands run in other folders.
    """
    kept = cache if cache is None else os.path.abspath(cache)
    said = {"url": url, "cache": kept, "cache_mb": cache_mb, "fetch_after": fetch_after}
    write_json(Path(folder) / REMOTE, {**said, "seal": trust.seal(REMOTE, said)})
