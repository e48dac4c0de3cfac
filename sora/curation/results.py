"""Stages of a curation, and their results: one parquet file for each unit of work, named by what it was made from.

    WORK/<stage>-<hash>/<unit>.parquet       the result of one unit; the hash covers the stage's settings, its version and all stages before
    WORK/<stage>-<hash>/<unit>.failed.json   in its place, why it has none

A unit is named by a hash of its content, so a result depends on the names of its folder and file alone, and is never stale. It is written
beside its name and renamed, so it is whole or not there, and several jobs may write into one folder without a lock: they would write the
same bytes. It is not synced, which would take longer than many a stage; what a power failure has torn is empty, and counts as not there, or
does not fit its checksums when it is read. A file carries a hash of each of its columns with its own name, so that one that was changed by
hand, or put in another's place, is refused instead of ending in a dataset that no settings make. It is no signature: whoever means to can
write the hash, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sora.curation.result_forms import ResultForm
from sora.gate import parquet
from sora.gate.forms import Fields, fitting, flag, text
from sora.gate.texts import CARD, json_of, read_json
from sora.system.files import STAGING, local, whole_file, write_json

SUFFIX, FAILED = ".parquet", ".failed.json"
_FAILURE = Fields({"reason": text, "died": flag})
_SEAL = "sora.result"  # in the footer of a result: the hashes of its columns
_ADVICE = "; remove it, and the same command makes it again"
_LONGEST = 2000  # characters of a reason
# Most results have a few rows of many columns: preparing a dictionary and a strong compressor for each column takes longer than writing it,
# and statistics would hold the least and the largest picture of a column, twice.
_KEPT: Mapping[str, Any] = MappingProxyType(
    {"compression": "lz4", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
)
NOTHING: Mapping[str, Any] = MappingProxyType({})
_HASH = 16  # hexadecimal digits of a stage's hash in its folder's name


@dataclass(frozen=True)
class CurationStage:
    """A step of the work. settings: JSON-able, everything that its results depend on besides its input. version: counts up when the same
    settings give other results. after: the stages whose results it reads."""

    name: str
    version: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[CurationStage, ...] = ()

    @property
    def hash(self) -> str:
        """A hash of the stage and of all stages before it."""
        said = [self.name, self.version, dict(self.settings), [stage.hash for stage in self.after]]
        return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode()).hexdigest()[:_HASH]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.hash}"


class Failure(NamedTuple):
    """Why a unit has no result. died: its process crashed or took too long or too much memory, so that another try may succeed. stage: the
    name of the stage that failed, where it was read from a file."""

    reason: str
    died: bool = False
    stage: str = ""


class _Seal:
    """Hashes of columns of a result, over all its rows in order. name: of the result. said: the hashes that its file states."""

    def __init__(self, name: str, columns: Sequence[str], said: Mapping[str, Any] = NOTHING) -> None:
        self._said = said
        self._hashes = {column: hashlib.blake2b(f"{name}/{column}".encode(), digest_size=16) for column in columns}

    def add(self, table: pa.Table) -> None:
        """Take more rows."""
        for column, known in self._hashes.items():
            for value in table[column]:
                plain = value.as_py()
                content = plain if isinstance(plain, bytes) else repr(plain).encode()
                known.update(b"%d:" % len(content) + content)

    def digests(self) -> dict[str, str]:
        return {column: known.hexdigest() for column, known in self._hashes.items()}

    def check(self, path: Path) -> None:
        """Raise ValueError if a column is not the one whose hash the file states."""
        if any(self._said[column] != digest for column, digest in self.digests().items()):
            raise changed(path)


def changed(path: Path, how: str = "") -> ValueError:
    """The error of a result that is not what a stage has written. how: what in it is not."""
    return ValueError(f"{path} is not as sora curate wrote it{f': {how}' if how else ''}{_ADVICE}")


class Results:
    """The results of a stage, in a folder. form: of each; None if only failures are read, or where any will do."""

    def __init__(self, folder: Path, form: ResultForm | None = None) -> None:
        self.folder, self.form = Path(folder), form

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.folder.name.rpartition("-")[0]

    def path(self, unit: str) -> Path:
        return self.folder / f"{unit}{SUFFIX}"

    def failed(self, unit: str) -> Path:
        return self.folder / f"{unit}{FAILED}"

    def has(self, unit: str) -> bool:
        """Whether a unit has a result or a failure."""
        return _is_there(self.path(unit)) or _is_there(self.failed(unit))

    def failure(self, unit: str) -> Failure | None:
        """Why a unit has no result; None if it has one, or has not been tried. Raises ValueError if the file with the reason is damaged."""
        path = self.failed(unit)
        if _is_there(self.path(unit)) or not _is_there(path):
            return None
        said = fitting(read_json(path, limit=CARD), _FAILURE, str(path), "remove it to try the unit again")
        return Failure(said["reason"], said["died"], self.name)

    def read(self, unit: str, *, only: Callable[[str], bool] = lambda name: True) -> pa.Table:
        """The result of a unit, those columns whose names are wanted. Raises ValueError if there is none or the file is damaged
        or was changed."""
        with self._opened(unit) as file:
            wanted = [name for name in file.schema_arrow.names if only(name)]
            seal = self._seal(unit, file, wanted)
            table = parquet.taken(file, self.path(unit), wanted)
            seal.add(table)
            seal.check(self.path(unit))
            self._check(unit, table)
            return table

    def groups(self, unit: str) -> Iterator[pa.Table]:
        """The result of a unit, one row group after another, for results that are too large to be read at once."""
        with self._opened(unit) as file:
            seal = self._seal(unit, file, file.schema_arrow.names)
            rows, last = 0, -1
            for group in range(file.metadata.num_row_groups):
                table = parquet.taken(file, self.path(unit), group=group)
                seal.add(table)
                self._check(unit, table, first=rows, before=last)
                yield table
                if self.form is not None and "number" in table.column_names and table.num_rows:
                    rows, last = rows + table.num_rows, table["number"][-1].as_py()
            seal.check(self.path(unit))

    @contextmanager
    def _opened(self, unit: str) -> Iterator[pq.ParquetFile]:
        try:
            with parquet.opened(self.path(unit)) as file:
                yield file
        except ValueError as error:
            raise error if str(error).endswith(_ADVICE) else ValueError(f"{error}{_ADVICE}") from None

    def write(self, unit: str, table: pa.Table, *, group_rows: int = 4096) -> None:
        """Save the result of a unit. group_rows: the most rows of a row group."""
        with self.writing(unit, table.schema) as add:
            add(table, group_rows)

    @contextmanager
    def writing(self, unit: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table, int], None]]:
        """A context that saves a result from tables that its function takes, each with the most rows of a row group."""
        seal = _Seal(f"{self.folder.name}/{unit}", schema.names)
        with whole_file(self.path(unit), lasting=False) as staging, pq.ParquetWriter(local(staging), schema, **_KEPT) as writer:

            def add(table: pa.Table, group_rows: int) -> None:
                seal.add(table)
                writer.write_table(table, row_group_size=group_rows)

            yield add
            writer.add_key_value_metadata({_SEAL: json.dumps(seal.digests())})

    def _check(self, unit: str, table: pa.Table, *, first: int = 0, before: int = -1) -> None:
        if self.form is not None:
            try:
                self.form.check(table, first=first, before=before)
            except ValueError as error:
                raise changed(self.path(unit), str(error)) from None

    def _seal(self, unit: str, file: pq.ParquetFile, columns: Sequence[str]) -> _Seal:
        said = json_of((file.metadata.metadata or {}).get(_SEAL.encode(), b"{}"), limit=CARD)
        if not isinstance(said, dict) or set(said) != set(file.schema_arrow.names):
            raise changed(self.path(unit))
        if self.form is not None:
            try:
                self.form.check_columns(file.schema_arrow)
            except ValueError as error:
                raise changed(self.path(unit), str(error)) from None
        return _Seal(f"{self.folder.name}/{unit}", columns, said)

    def fail(self, unit: str, failure: Failure) -> None:
        """Save that a unit has no result, and why."""
        reason = failure.reason.encode("utf-8", "backslashreplace").decode()
        write_json(self.failed(unit), {"reason": reason[:_LONGEST], "died": failure.died})

    def forget(self, unit: str) -> bool:
        """Remove a unit's failure, so that it is tried again; whether there was one."""
        there = self.failed(unit).is_file()
        self.failed(unit).unlink(missing_ok=True)
        return there

    def settled(self) -> dict[str, tuple[float, bool]]:
        """All units that have a result or a failure: when it was written, in seconds since 1970, and whether it is a failure."""
        found: dict[str, tuple[float, bool]] = {}
        if self.folder.is_dir():
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    for suffix in (SUFFIX, FAILED):
                        if entry.name.endswith(suffix) and not entry.name.startswith(STAGING) and (about := entry.stat()).st_size:
                            found[entry.name.removesuffix(suffix)] = (about.st_mtime, suffix == FAILED)
        return found


def _is_there(path: Path) -> bool:
    """Whether a file is there and not empty."""
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size > 0


def hashed(*parts: Any) -> str:
    """SHA-256 of JSON-able values, hexadecimal: the name of a unit that is made from them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()
