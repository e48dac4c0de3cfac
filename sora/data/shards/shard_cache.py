"""A cache of whole shards of remote stores, in a folder of this machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sora.system.files import STAGING

_CACHED = f"{'[0-9a-f]' * 32}.tar"  # files of a `ShardCache`


def pread(handle: int, path: Path | str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of an open file; a shorter file raises `ValueError` with its name."""
    length = os.fstat(handle).st_size
    if offset < 0 or size < 0 or offset + size > length:  # checked before memory is taken: an index may claim any size
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
    """Whole shards in a folder of this machine, shared by its processes: at most `max_bytes` together, the least recently used goes first.

    One shard is fetched at a time; a process that finds another one fetching reads by range meanwhile. A dataset's remote.json names the
    folder, and the dataset may be a stranger's: nothing in the folder is touched but files with a cache's own names.
    """

    folder: Path
    max_bytes: int

    def path(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"

    def read(self, url: str, offset: int, size: int) -> bytes | None:
        """Bytes of a shard; None if the shard is not in the cache (any more)."""
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
            os.close(handle)  # an open handle would keep an evicted shard's bytes on the disk

    def fetch(self, url: str, size: int, copy: Callable[[Path], None]) -> bool:
        """Make room and let `copy` write the shard; return whether the cache holds it now."""
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
        """Remove stale staging files and old shards. Call it with the lock held: then a staging file is one that a killed process left."""
        for staging in self.folder.glob(f"{STAGING}{_CACHED}"):
            staging.unlink(missing_ok=True)
        kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob(_CACHED))
        used = sum(length for _, length, _ in kept)
        for _, length, path in kept:
            if used + size <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            used -= length
