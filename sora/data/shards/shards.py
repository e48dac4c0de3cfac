"""Tar shards in WebDataset's layout (`{key}.mp4`, `{key}.json`), written whole or not at all, and read by offset.

A shard is a plain ustar file that any tar program and `webdataset` can read. Members are read with `pread` at an offset from the index,
since a tar reader that walks a damaged shard loses samples without saying so.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from sora.data.index.unique_keys import KeySet
from sora.data.shards.stores import LocalStore, Store, pread
from sora.system.files import whole_file

# WebDataset cuts the key off at the first dot; 90 characters and a suffix fit into a ustar name.
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,89}")
SUFFIX = re.compile(r"[a-z0-9_]{1,16}")
_BLOCK = 512
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class Member:
    """The place of one file of a sample: `size` bytes from `offset` of the tar file `shard`. place: its row in the index; -1 for none."""

    key: str
    suffix: str
    shard: str
    offset: int
    size: int
    sha256: str
    place: int = field(default=-1, compare=False)


class ShardWriter:
    """Writes samples into `{prefix}-000000.tar`, `{prefix}-000001.tar`, ... of `folder`, each at most about `max_bytes`.

    Every sample has exactly the files named by `suffixes`. A shard appears under its name only when it is complete and synced; an error
    inside the `with` block discards the open shard. The bytes depend on the samples alone (no clock, no user). Keys are letters, digits,
    `-` and `_`, and are unique.
    """

    def __init__(self, folder: Path | str, *, prefix: str, suffixes: Sequence[str], max_bytes: int, first: int = 0) -> None:
        if max_bytes < 1:
            raise ValueError(f"shards of {max_bytes} bytes hold nothing; set max_bytes to about 1e9")
        for suffix in suffixes:
            if not SUFFIX.fullmatch(suffix):
                raise ValueError(f"{suffix!r} is no suffix of a shard's member; use lower case letters and digits, such as mp4")
        self.folder, self.prefix, self.suffixes, self.max_bytes = Path(folder), prefix, tuple(suffixes), max_bytes
        self.closed: list[Path] = []
        self._number = first
        self._keys = KeySet()
        self._stack: ExitStack | None = None
        self._file: BinaryIO | None = None
        self._position = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is None:
            return
        if error is None:
            self._close()
        else:
            self._abandon(kind, error, trace)

    @property
    def shard(self) -> str:
        """The name of the shard that the next sample goes to, unless it is full."""
        return f"{self.prefix}-{self._number:06d}.tar"

    def write(self, key: str, files: Mapping[str, bytes]) -> tuple[Member, ...]:
        """Append one sample and return its members in the order of `suffixes`."""
        if not KEY.fullmatch(key):
            raise ValueError(f"the key {key!r} does not fit a shard; use up to 90 letters, digits, '-' and '_', without dots")
        if set(files) != set(self.suffixes):
            raise ValueError(f"sample {key} brings {sorted(files)}, shards of {self.prefix!r} hold {sorted(self.suffixes)}")
        if not self._keys.add(key):
            raise ValueError(f"the key {key!r} came twice; the keys of a dataset are unique")
        size = sum(_BLOCK + _padded(len(content)) for content in files.values())
        if self._file is not None and self._position + size + len(_END) > self.max_bytes:
            self._close()
        if self._file is None:
            self._open()
        return tuple(self._append(key, suffix, files[suffix]) for suffix in self.suffixes)

    def _append(self, key: str, suffix: str, content: bytes) -> Member:
        assert self._file is not None
        header = tarfile.TarInfo(f"{key}.{suffix}")
        header.size, header.mode = len(content), 0o644
        self._file.write(header.tobuf(format=tarfile.USTAR_FORMAT))
        offset = self._position + _BLOCK
        self._file.write(content)
        self._file.write(bytes(_padded(len(content)) - len(content)))
        self._position = offset + _padded(len(content))
        return Member(key, suffix, self.shard, offset, len(content), hashlib.sha256(content).hexdigest())

    def _open(self) -> None:
        self._stack = ExitStack()
        staging = self._stack.enter_context(whole_file(self.folder / self.shard))
        self._file = self._stack.enter_context(open(staging, "wb", buffering=1 << 20))  # noqa: SIM115 (the stack closes it)
        self._position = 0

    def _close(self) -> None:
        assert self._file is not None and self._stack is not None
        path = self.folder / self.shard
        with self._stack:  # an error here, such as a full disk, removes the staging file
            self._file.write(_END)
            self._file.write(bytes(-(self._position + len(_END)) % tarfile.RECORDSIZE))
        self._file, self._stack = None, None
        self.closed.append(path)
        self._number += 1

    def _abandon(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._stack is not None
        stack, self._file, self._stack = self._stack, None, None
        try:
            stack.__exit__(kind, error, trace)
        except OSError as second:  # flushing to a full disk fails once more; the first error is the one to tell
            assert second is not None


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def read_at(path: Path | str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a file; a shorter file raises `ValueError` with its name."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return pread(handle, path, offset, size)
    finally:
        os.close(handle)


class ShardReader:
    """Reads members of shards by offset and checks their hashes. store: the store of the shards, or their folder.

    members: the number of members in the index; each is hashed at this process's first read of it and trusted later, since hashing costs
    several times what reading does. None: every read is hashed, as reads from a remote store always are.
    """

    def __init__(self, store: Store | Path | str, *, members: int | None = None) -> None:
        self.store = LocalStore(store) if isinstance(store, str | Path) else store
        self._known = None if members is None or self.store.remote else np.zeros(-(-members // 8), np.uint8)  # one bit per member

    def read(self, member: Member) -> bytes:
        """The member's bytes; a shard that is missing, cut short or changed raises `ValueError` with the shard and the key."""
        content, (byte, bit) = self._read(member), divmod(member.place, 8)
        if self._known is not None and member.place >= 0 and self._known[byte] >> bit & 1:
            return content
        if hashlib.sha256(content).hexdigest() != member.sha256 and self.store.forget(member.shard):
            content = self._read(member)  # the cached copy was another version of the shard
        if hashlib.sha256(content).hexdigest() != member.sha256:
            place = self.store.place(member.shard)
            raise ValueError(f"clip {member.key}: its bytes in {place} have changed since it was indexed; prepare or fetch the shard again")
        if self._known is not None and member.place >= 0:
            self._known[byte] |= 1 << bit
        return content

    def _read(self, member: Member) -> bytes:
        try:
            return self.store.read(member.shard, member.offset, member.size)
        except ValueError as error:
            raise ValueError(f"clip {member.key}: {error}; prepare or fetch the shard again") from None

    def close(self) -> None:
        self.store.close()
