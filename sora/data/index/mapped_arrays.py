"""Plain arrays in files, one per column, mapped into memory: all processes of a machine share them and none holds a copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sora.gate.files import opened
from sora.system.files import sync

_CHECKED_AT_ONCE = 32 << 20  # bytes up to which opening a file compares its hash
_LONGEST = 4096  # the most numbers of one row where rows differ in length


class Column(NamedTuple):
    """One column of a layout. dtype: of its numbers. each: numbers per row; None if that differs from row to row."""

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
        """Close the files and return their SHA-256 by name."""
        self.close()
        for name in self._files:
            sync(self.folder / f"{name}.bin")
        return {name: found.hexdigest() for name, found in self._hashes.items()}


def open_arrays(folder: Path, layout: Layout, hashes: Mapping[str, str], *, rows: int) -> dict[str, np.ndarray]:
    """Map the arrays of `rows` rows into memory; an array with several numbers per row has two axes.

    The content of small files is compared with their hashes; of large files only the size is checked.

    Raises:
        ValueError: a file is missing, has the wrong size or has changed.
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
    """Compare every file with its hash, unless its size already contradicts the number of rows."""
    for name, (dtype, each) in layout.items():
        path, row = folder / f"{name}.bin", (each or _LONGEST) * np.dtype(dtype).itemsize
        with opened(path, within=folder.parent) as file:
            size = os.fstat(file.fileno()).st_size
            if size > rows * row or (each is not None and size != rows * row):  # a sparse file of a terabyte is cheap to make
                raise changed(path)
            if hashlib.file_digest(file, "sha256").hexdigest() != hashes.get(name):
                raise changed(path)


def changed(path: Path) -> ValueError:
    return ValueError(f"{path} has changed since it was written; delete the folder {path.parent}: it only repeats the metadata")
