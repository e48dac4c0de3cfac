"""Reads parquet files whose footers may lie.

A footer may claim any number of rows, and a page may unpack to a thousand times its size: a dictionary with one long text stands for a copy
of it in every row. So before a column is read, the headers of its pages are read: the sizes that they unpack to, the number of their
values, and the size of their dictionary (PageHeader of the Apache Parquet format, in Thrift's compact protocol).
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.gate.files import regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FOOTER = 64 << 20  # bytes of a footer
LARGEST = 512 << 20  # bytes of memory for what is read at once
WHOLE = 4 << 30  # bytes of a table file of one shard
BATCH = 4096  # rows
CHUNKS, COLUMNS = 2_000_000, 10_000  # column chunks of all row groups, and columns of one
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}  # bytes of a value, by its type in the file


@contextmanager
def opened(path: Path | str, *, within: Path | str | None = None, about: Any = None) -> Iterator[pq.ParquetFile]:
    """A context with a parquet file open for reading. Call `refuse_large` before reading columns.

    about: the file's footer, if it was read before.

    Raises:
        ValueError: it is no regular file, leads out of `within`, or is damaged; errors while it is read become ValueErrors, too.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with os.fdopen(regular(path, within=within), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), 8, max(0, size - 8))
        footer = int.from_bytes(tail[:4], "little")
        if size < 12 or tail[4:] != b"PAR1" or footer > size - 12:
            raise ValueError(f"{path} is damaged: it does not end as a parquet file does")
        if footer > FOOTER:
            raise ValueError(f"{path} has a footer of {footer:,} bytes, and {FOOTER:,} are the most")
        try:
            with pq.ParquetFile(pa.OSFile(os.path.abspath(path)), metadata=about, page_checksum_verification=True) as found:
                said = found.metadata
                if said.num_row_groups * said.num_columns > CHUNKS or said.num_columns > COLUMNS:
                    raise ValueError(f"its groups times its columns are {said.num_row_groups:,} x {said.num_columns:,}, too many")
                yield found
        except MemoryError as error:
            raise ValueError(f"{path} unpacks to more than {LARGEST:,} bytes, the most that is read at once: {error}") from None
        except (pa.ArrowException, OSError, KeyError, IndexError, ValueError, OverflowError) as error:  # the last: invalid dates
            told = str(error)
            raise ValueError(told if str(path) in told else f"{path} is damaged: {told}") from None


def read(path: Path | str, columns: Sequence[str] | None = None, *, group: int | None = None, within: Path | str | None = None) -> pa.Table:
    """Columns of a file (None: all; missing ones are left out), or of one row group. Raises ValueError as `opened` does."""
    with opened(path, within=within) as file:
        return taken(file, path, columns, group=group)


def taken(file: pq.ParquetFile, path: Path | str, columns: Sequence[str] | None = None, *, group: int | None = None) -> pa.Table:
    """`read` for an open file."""
    names = file.schema_arrow.names
    there = names if columns is None else [name for name in columns if name in names]
    groups = range(file.metadata.num_row_groups) if group is None else [group]
    with refuse_large(file, path, there, groups):
        if group is None:
            return file.read(columns=there, use_threads=file.metadata.num_rows > BATCH)
        return file.read_row_group(group, columns=there, use_threads=False)


def batches(file: pq.ParquetFile, path: Path | str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of an open file in batches of rows, for files of any length. Raises ValueError for rows that take too much memory."""
    for group in range(file.metadata.num_row_groups):
        _most(file.metadata, path, columns, [group], at_once=False)
        rows = file.iter_batches(BATCH, row_groups=[group], columns=list(columns))
        while True:
            with _fenced(LARGEST):
                batch = next(rows, None)
            if batch is None:
                break
            yield batch


@contextmanager
def refuse_large(file: pq.ParquetFile, path: Path | str, columns: Sequence[str], groups: Sequence[int]) -> Iterator[None]:
    """A context for reading columns of row groups. Raises ValueError if the footer claims more than the pages hold, or if the columns take
    more than `LARGEST` bytes. Where their size cannot be known before, the process cannot allocate more than that inside."""
    most = _most(file.metadata, path, columns, groups)
    with _fenced(LARGEST) if most > LARGEST else nullcontext():
        yield


def _most(about: Any, path: Path | str, columns: Sequence[str], groups: Sequence[int], *, at_once: bool = True) -> int:
    """An upper bound of the bytes that columns of row groups take; every value counts as the dictionary's longest text. Raises ValueError
    if they certainly take too many, unless they are not read `at_once`."""
    names, schema = set(columns), about.schema
    columns_there = [(place, schema.column(place)) for place in range(about.num_columns)]
    wanted = [(place, column) for place, column in columns_there if column.path.partition(".")[0] in names]
    total = plain = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in groups:
            there = about.row_group(group)
            rows = there.num_rows
            for place, column in wanted:
                unpacked, values, dictionary = _pages(content, there.column(place))
                if column.max_repetition_level == 0 and values != rows:
                    raise ValueError(f"{path} is damaged: rows={rows:,} of a group, and its column {column.path[:60]!r} holds {values:,}")
                each = _WIDTHS.get(column.physical_type) or max(0, column.length if "FIXED" in column.physical_type else 0)
                plain += unpacked + values * each
                total += unpacked + values * (each or dictionary)
    if plain > LARGEST and at_once:
        raise ValueError(
            f"{path} unpacks to {plain:,} bytes, and {LARGEST:,} are the most that is read at once; write it in smaller groups"
        )
    return total


def _pages(content: mmap.mmap, chunk: Any) -> tuple[int, int, int]:
    """Of a column chunk: the bytes that its pages unpack to, the number of its values, and the bytes of its dictionary."""
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    end = begin + chunk.total_compressed_size
    if not 0 <= begin <= end <= len(content):
        raise ValueError("a column lies outside of the file")
    unpacked = values = dictionary = 0
    while begin < end:
        header, begin = _struct(content, begin, end)
        size, packed = header.get(2, -1), header.get(3, -1)
        if size < 0 or not 0 <= packed <= end - begin:
            raise ValueError("a page lies outside of its column")
        begin += packed
        unpacked += size
        dictionary = max(dictionary, size if 7 in header else 0)
        values += (header.get(5) or header.get(8) or {}).get(1, 0)
    return unpacked, values, dictionary


def _struct(content: mmap.mmap, at: int, end: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The numbers and structs in a struct of Thrift's compact protocol, by field, and the offset of its end."""
    found: dict[int, Any] = {}
    number = 0
    while True:
        if at >= end or depth > 4:
            raise ValueError("a page has no whole header")
        head, at = content[at], at + 1
        if not head:
            return found, at
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _signed(content, at, end)
        found[number], at = _field(content, at, end, kind, depth)


def _field(content: mmap.mmap, at: int, end: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false take no bytes
        return kind == 1, at
    if kind == 3:
        return 0, at + 1
    if kind in (4, 5, 6):
        return _signed(content, at, end)
    if kind == 7:
        return 0, at + 8
    if kind == 8:
        length, at = _unsigned(content, at, end)
        return 0, at + length
    if kind == 12:
        return _struct(content, at, end, depth + 1)
    raise ValueError("a page has a header of another kind")


def _unsigned(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a page has no whole header")


def _signed(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value, at = _unsigned(content, at, end)
    return (value >> 1) ^ -(value & 1), at


@contextmanager
def _fenced(most: int) -> Iterator[None]:
    """A context in which this process can map at most `most` further bytes; larger allocations raise MemoryError."""
    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + most if hard == resource.RLIM_INFINITY else min(mapped + most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
