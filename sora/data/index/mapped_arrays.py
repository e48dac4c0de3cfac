"""Plain arrays in files, one a column, that are mapped into memory: what all processes of a machine share and none holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sora.gate.files import opened
from sora.system.files import sync

_CHECKED_AT_ONCE = 32 << 20  # bytes up to which opening compares hashes
_LONGEST = 4096  # numbers of a row that has any


class Column(NamedTuple):
    """dtype: of its numbers. each: how many a row has; None: that differs."""

    dtype: str
    each: int | None = 1


Layout = Mapping[str, Column]


class ArrayWriter:
    """Writes the arrays of a layout into `folder`/NAME.bin, some rows at a time."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self._layout = folder, layout
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in layout}

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, column in self._layout.items():
            if name not in self._files:
                self._files[name] = open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115 (close and finish close it)
            content = np.ascontiguousarray(arrays[name], dtype=column.dtype).tobytes()
            self._files[name].write(content)
            self._hashes[name].update(content)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> dict[str, str]:
        """Close the files; their SHA-256 by name."""
        self.close()
        for name in self._files:
            sync(self.folder / f"{name}.bin")
        return {name: found.hexdigest() for name, found in self._hashes.items()}


def open_arrays(folder: Path, layout: Layout, hashes: Mapping[str, str], *, rows: int) -> dict[str, np.ndarray]:
    """The arrays of `rows` rows, mapped; of several numbers a row they have two axes.

    Small ones are compared with their hashes, of large ones the size.

    Raises:
        ValueError: a file is missing, of the wrong size or has changed.
    """
    paths = {name: folder / f"{name}.bin" for name in layout}
    sizes = {name: path.stat().st_size if path.is_file() else -1 for name, path in paths.items()}
    for name, (dtype, each) in layout.items():
        if sizes[name] < 0 or (each is not None and sizes[name] != rows * each * np.dtype(dtype).itemsize):
            raise changed(paths[name])
    if sum(sizes.values()) <= _CHECKED_AT_ONCE:
        check_arrays(folder, layout, hashes, rows=rows)
    arrays = {name: np.asarray(np.memmap(path, layout[name].dtype, "r")) for name, path in paths.items()}
    return {name: array.reshape(rows, -1) if (layout[name].each or 1) > 1 else array for name, array in arrays.items()}


def check_arrays(folder: Path, layout: Layout, hashes: Mapping[str, str], *, rows: int) -> None:
    """Compare every file with the hash that is known of it, if it is as long as so many rows are."""
    for name, (dtype, each) in layout.items():
        path, row = folder / f"{name}.bin", (each or _LONGEST) * np.dtype(dtype).itemsize
        with opened(path, within=folder.parent) as file:
            size = os.fstat(file.fileno()).st_size
            if size > rows * row or (each is not None and size != rows * row):  # a hole of a terabyte takes no room on a disk
                raise changed(path)
            if hashlib.file_digest(file, "sha256").hexdigest() != hashes.get(name):
                raise changed(path)


def changed(path: Path) -> ValueError:
    return ValueError(f"{path} has changed since it was written; delete the folder {path.parent}: it only repeats the metadata")
