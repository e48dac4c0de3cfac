"""Finds duplicate keys among more keys than memory holds."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from jaxtyping import Int64

_AT_ONCE = 1 << 21  # keys compared together, at about 60 bytes each
_CHUNK = 1 << 20
_NEW = 1 << 16  # keys that a Python set holds before they are sorted into an array


class KeyFile:
    """128-bit digests of keys in a nameless temporary file, in the order of `add`; only some of them are in memory at a time.

    folder: the file's folder (None: the system's folder for temporary files); it takes 16 bytes a key.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (close closes it)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: Iterable[str]) -> None:
        digests = [_digest(key) for key in keys]
        self._file.write(b"".join(digests))
        self._count += len(digests)

    def repeated(self) -> Int64[np.ndarray, "_"]:
        """The positions, in order, of keys that were added before; they take 8 bytes each."""
        if not self._count:
            return np.empty(0, np.int64)
        self._file.flush()
        digests = np.memmap(self._file, "<u8", "r").reshape(-1, 2)
        parts = -(-self._count // _AT_ONCE)
        return np.sort(np.concatenate([_repeated(digests, part, parts) for part in range(parts)]))

    def close(self) -> None:
        self._file.close()


class KeySet:
    """A set of keys, as 128-bit digests in sorted arrays: 16 bytes each, 48 for a moment while arrays are merged."""

    def __init__(self) -> None:
        self._new: set[bytes] = set()
        self._sorted: list[np.ndarray] = []  # each less than half as long as the one before it

    def add(self, key: str) -> bool:
        """Add a key; return whether it is new."""
        digest = _digest(key)
        if digest in self._new or any(_holds(known, digest) for known in self._sorted):
            return False
        self._new.add(digest)
        if len(self._new) >= _NEW:
            known, self._new = np.sort(np.array(list(self._new), "S16")), set()
            while self._sorted and len(self._sorted[-1]) <= 2 * len(known):
                known = np.sort(np.concatenate([self._sorted.pop(), known]))
            self._sorted.append(known)
        return True


def _holds(known: np.ndarray, digest: bytes) -> bool:
    wanted = np.array(digest, "S16")  # numpy strips zeros from the end, of both operands alike
    place = int(np.searchsorted(known, wanted))
    return place < len(known) and bool(known[place] == wanted)


def _digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()


def _repeated(digests: np.ndarray, part: int, parts: int) -> np.ndarray:
    """The positions of repeated digests among those whose residue is `part` modulo `parts`: equal digests have equal residues."""
    starts = range(0, len(digests), _CHUNK)
    places = np.concatenate([start + np.flatnonzero(digests[start : start + _CHUNK, 0] % np.uint64(parts) == part) for start in starts])
    some = digests[places]
    order = np.lexsort((places, some[:, 1], some[:, 0]))
    same = (some[order[1:]] == some[order[:-1]]).all(axis=1)
    return places[order[1:][same]]
