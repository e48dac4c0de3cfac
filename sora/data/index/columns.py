"""The numbers that planning and reading need of every clip, as plain arrays in memory-mapped files that are never read as a whole.

    columns/frames.bin …   one little-endian number per clip; the clips' hashes as 32 bytes, their keys one after another

They repeat what the parquet files say, and are made from those where they are missing. A hundred million clips take about 10 GB of files; a
process holds only the pages that it reads, and shares them with all other processes of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from sora.data.index.mapped_arrays import ArrayWriter, Column, changed, check_arrays, open_arrays
from sora.gate.files import below

FOLDER = "columns"
SOURCES = ("key", "suffix", "offset", "size", "sha256", "frames", "fps", "height", "width", "split")
LAYOUT = {
    "offset": Column("<i8"),
    "size": Column("<i8"),
    "frames": Column("<i4"),
    "height": Column("<i4"),
    "width": Column("<i4"),
    "fps": Column("<f8"),
    "split": Column("<i2"),  # index into `splits`
    "suffix": Column("<i2"),  # index into `suffixes`
    "sha256": Column("u1", 32),
    "key_end": Column("<i8"),  # offset of the key's end in `keys`
    "keys": Column("u1", None),
}

CHECKED_AT_ONCE = 1_000_000  # rows up to which opening a dataset checks every number
RATES = (1e-6, 1e6)  # frames a second that a clip may have
LEAST = {"offset": 0, "size": 0, "frames": 1, "height": 1, "width": 1}  # the same bounds as in `sora.data.index.rows`
CODES = {"split": "s", "suffix": "es"}  # the ending that makes a column's name that of its list in dataset.json


class Columns:
    """The arrays of all clips of a dataset. splits, suffixes: the texts that the numbers in the columns of these names stand for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, splits: Sequence[str], suffixes: Sequence[str]) -> None:
        self.arrays, self.splits, self.suffixes = dict(arrays), tuple(splits), tuple(suffixes)

    def __len__(self) -> int:
        return len(self.arrays["frames"])

    def key(self, row: int) -> str:
        ends = self.arrays["key_end"]
        try:
            return bytes(self.arrays["keys"][int(ends[row - 1]) if row else 0 : int(ends[row])]).decode("ascii")
        except UnicodeDecodeError:
            raise ValueError(f"the columns are damaged at clip {row}: its key is none; delete their folder") from None

    def suffix(self, row: int) -> str:
        number = int(self.arrays["suffix"][row])
        if not 0 <= number < len(self.suffixes):
            raise ValueError(f"the columns are damaged at clip {row}: it has suffix {number} of {len(self.suffixes)}; delete their folder")
        return self.suffixes[number]

    def sha256(self, row: int) -> str:
        return bytes(self.arrays["sha256"][row]).hex()


class Keys(Sequence[str]):
    """A sequence of the keys of some rows, made on access, so no text per clip is held. Equal to any sequence of the same keys."""

    def __init__(self, columns: Columns, rows: np.ndarray | None) -> None:
        self._columns, self._rows = columns, rows

    def __len__(self) -> int:
        return len(self._columns) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # negative ones count from the end, others raise IndexError
        return self._columns.key(number if self._rows is None else int(self._rows[number]))

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class _Codes:
    """Numbers the few distinct texts of a column in order of appearance."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __call__(self, column: pa.ChunkedArray) -> np.ndarray:
        coded = column.combine_chunks().dictionary_encode()
        numbers = [self.texts.setdefault(text, len(self.texts)) for text in coded.dictionary.to_pylist()]
        if len(self.texts) > 32767:
            raise ValueError(f"there are more than 32767 splits or suffixes, such as {next(reversed(self.texts))!r}")
        return np.asarray(numbers, dtype="<i2")[coded.indices.to_numpy()]


class _Arrays:
    """Turns tables of rows into arrays, one table after another."""

    def __init__(self) -> None:
        self.splits, self.suffixes = _Codes(), _Codes()
        self._key_bytes = 0

    def __call__(self, table: pa.Table) -> dict[str, np.ndarray]:
        found = {name: table[name].to_numpy() for name in ("offset", "size", "frames", "height", "width", "fps")}
        keys = [key.encode() for key in table["key"].to_pylist()]
        found["key_end"] = self._key_bytes + np.cumsum([len(key) for key in keys], dtype=np.int64)
        self._key_bytes += sum(map(len, keys))
        found["keys"] = np.frombuffer(b"".join(keys), dtype="u1")
        found["sha256"] = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), dtype="u1").reshape(-1, 32)
        found |= {"split": self.splits(table["split"]), "suffix": self.suffixes(table["suffix"])}
        return {name: np.ascontiguousarray(array, dtype=LAYOUT[name].dtype) for name, array in found.items()}


class ColumnWriter:
    """Writes the columns of a dataset into `folder`/columns, one table of rows at a time."""

    def __init__(self, folder: Path) -> None:
        self._arrays, self._writer = _Arrays(), ArrayWriter(below(folder, FOLDER), LAYOUT)

    def write(self, table: pa.Table) -> None:
        self._writer.write(self._arrays(table))

    def close(self) -> None:
        self._writer.close()

    def finish(self) -> dict[str, Any]:
        """Close the files and return the entry that describes them in dataset.json."""
        hashes = self._writer.finish()
        return {"splits": list(self._arrays.splits.texts), "suffixes": list(self._arrays.suffixes.texts), "sha256": hashes}


class ColumnCheck:
    """Compares columns with the rows that they repeat, one table at a time. `wrong` names the columns that differ from the rows."""

    def __init__(self, columns: Columns) -> None:
        self.wrong: set[str] = set()
        self._columns, self._arrays = columns, _Arrays()
        self._at = dict.fromkeys(LAYOUT, 0)

    def __call__(self, table: pa.Table) -> None:
        for name, array in self._arrays(table).items():
            start = self._at[name]
            self._at[name] += len(array)
            if not np.array_equal(array, self._columns.arrays[name][start : start + len(array)]):
                self.wrong.add(name)
        for name, codes, texts in (("split", self._arrays.splits, "splits"), ("suffix", self._arrays.suffixes, "suffixes")):
            if tuple(codes.texts) != getattr(self._columns, texts)[: len(codes.texts)]:
                self.wrong.add(name)


def open_columns(folder: Path, described: Mapping[str, Any], rows: int) -> Columns | None:
    """The mapped columns of a dataset (see `open_arrays`); None if the dataset has none."""
    about = described.get("columns")
    if about is None or not below(folder, FOLDER).is_dir():
        return None
    arrays = open_arrays(folder / FOLDER, LAYOUT, about["sha256"], rows=rows)
    if arrays["key_end"][-1] != len(arrays["keys"]):
        raise changed(folder / FOLDER / "keys.bin")
    if rows <= CHECKED_AT_ONCE and (name := _impossible(arrays, about)):
        raise ValueError(f"{folder / FOLDER / f'{name}.bin'} is damaged: it holds what no clip has; prepare or index the dataset again")
    return Columns(arrays, splits=about["splits"], suffixes=about["suffixes"])


def _impossible(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """The name of the first array that has a value no clip can have; "" if there is none."""
    ends = np.concatenate([[0], arrays["key_end"]])
    wrong = {name: bool((arrays[name] < least).any()) for name, least in LEAST.items()}
    wrong |= {
        "fps": not bool(((arrays["fps"] >= RATES[0]) & (arrays["fps"] <= RATES[1])).all()),
        "key_end": bool((np.diff(ends) < 0).any()),
    }
    for name, end in CODES.items():
        codes = arrays[name]
        wrong[name] = bool(((codes < 0) | (codes >= len(about[f"{name}{end}"]))).any())
    return next((name for name, found in wrong.items() if found), "")


def check_columns(folder: Path, described: Mapping[str, Any]) -> None:
    """Compare every column with its hash in dataset.json."""
    check_arrays(folder / FOLDER, LAYOUT, described["columns"]["sha256"], rows=described["totals"]["clips"])


def columns_of(tables: Iterator[pa.Table]) -> Columns:
    """Columns in memory, made from the rows themselves."""
    made = _Arrays()
    parts = [made(table) for table in tables]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in LAYOUT}
    return Columns(arrays, splits=list(made.splits.texts), suffixes=list(made.suffixes.texts))
