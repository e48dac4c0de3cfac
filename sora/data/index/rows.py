"""The metadata of a clip, and the parquet files that hold them: one row per clip, one file per shard."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sora.data.index.columns import RATES
from sora.data.shards.shards import Member
from sora.gate import parquet
from sora.gate.texts import CARD, json_of
from sora.system.files import file_hash, local, whole_file
from sora.system.terminal import counted

CAPTIONS = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("captioner", pa.string())]))
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("suffix", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("duration", pa.float64()),
        ("captions", CAPTIONS),
        ("split", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("licence", pa.string()),
        ("extra", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("consent", pa.string()),
    ]
)
GROUP_ROWS = 256  # rows that are read together when one of them is asked for
_KEPT_GROUPS, _KEPT_FOOTERS = 512, 256


@dataclass(frozen=True)
class Caption:
    """A text that describes a clip. kind: "short", "dense" and so on. captioner: who wrote it ("original", "world" or a model's name)."""

    kind: str
    text: str
    captioner: str


@dataclass(frozen=True)
class ClipFacts:
    """The metadata of a clip. fps: frames a second. start: seconds into its source. extra: anything JSON-able.

    scores: numbers by name (aesthetic, motion, ...). consent: that of the people shown, in the source's words; "" if not known.
    """

    key: str
    frames: int
    fps: float
    height: int
    width: int
    captions: tuple[Caption, ...] = ()
    split: str = "train"
    source: str = ""
    start: float = 0.0
    licence: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    consent: str = ""

    @property
    def duration(self) -> float:
        """The duration in seconds; 0 for an image, whatever its frame rate says."""
        return self.frames / self.fps if self.frames > 1 else 0.0


@dataclass(frozen=True)
class ClipRow(ClipFacts):
    """A row of the index: the facts of a clip, and where its bytes lie."""

    shard: str = ""
    suffix: str = ""
    offset: int = 0
    size: int = 0
    sha256: str = ""

    @property
    def member(self) -> Member:
        return Member(self.key, self.suffix, self.shard, self.offset, self.size, self.sha256)


def clip_row(facts: ClipFacts, member: Member, *, licence: str = "") -> ClipRow:
    """The row of a clip whose bytes lie at `member`. licence: the dataset's, for clips that name none of their own."""
    known: dict[str, Any] = {name: getattr(facts, name) for name in ClipFacts.__dataclass_fields__}
    known.update({name: getattr(member, name) for name in ("shard", "suffix", "offset", "size", "sha256")})
    known["licence"] = facts.licence or licence
    return ClipRow(**known)


def identity(key: str, sha256: str, frames: int, fps: float, height: int, width: int, split: str) -> bytes:
    """The bytes by which a clip enters the dataset's fingerprint: its content, shape and split, but neither its place nor its captions."""
    return f"{key}\t{sha256}\t{frames}\t{fps!r}\t{height}\t{width}\t{split}\n".encode()


def caption_identity(key: str, captions: Sequence[Mapping[str, str]]) -> bytes:
    """The bytes by which a clip's captions enter the captions' fingerprint: kind, text and captioner of each, in this order."""
    return json.dumps((key, list(captions))).encode()


def table_of(rows: Sequence[ClipRow]) -> pa.Table:
    """Rows as a table; text that UTF-8 cannot encode (a lone surrogate out of somebody's JSON) raises `ValueError`."""
    special = ("captions", "extra", "scores")
    columns: dict[str, list] = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name not in special}
    columns["captions"] = [[asdict(caption) for caption in row.captions] for row in rows]
    columns["extra"] = [json.dumps(dict(row.extra), allow_nan=False) if row.extra else "" for row in rows]
    columns["scores"] = [list(row.scores.items()) for row in rows]
    try:
        return pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        raise ValueError(f"a text of one of the clips {rows[0].key} to {rows[-1].key} is no text in UTF-8: {error}") from None


def write_table(path: Path, table: pa.Table, *, lasting: bool = True) -> None:
    """Write one shard's rows as a parquet file, whole or not at all. lasting: see `whole_file`."""
    with whole_file(path, lasting=lasting) as staging:
        pq.write_table(table, local(staging), compression="zstd", row_group_size=GROUP_ROWS)


def write_rows(path: Path, rows: Sequence[ClipRow]) -> None:
    """Write rows as `write_table` does."""
    write_table(path, table_of(rows))


def clip_row_of(values: Mapping[str, Any]) -> ClipRow:
    """A `ClipRow` from the values of a table's row."""
    kept: dict[str, Any] = {name: value for name, value in values.items() if name != "duration"}
    kept["captions"] = tuple(Caption(**caption) for caption in kept["captions"])
    kept["extra"] = json_of(kept["extra"].encode(), limit=CARD) if kept["extra"] else {}
    kept["scores"] = dict(kept["scores"] or ())
    kept["consent"] = kept["consent"] or ""  # files of version 1 have none
    return ClipRow(**kept)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a parquet file of this version or of the first one, which had no scores and no consent."""
    with parquet.opened(path) as file:
        table = _completed(parquet.taken(file, path, columns or SCHEMA.names), columns)
        refuse_impossible(table, path)
        return table


def _completed(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    for name in ("scores", "consent"):
        if name not in table.column_names and name in (columns or SCHEMA.names):
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
    wanted = pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
    return table.select(wanted.names).cast(wanted)


LEAST = {"offset": 0, "size": 0, "frames": 1, "height": 1, "width": 1}  # the smallest numbers that a row may have
WHOLE = ("key", "shard", "suffix", "sha256", "split", "fps", *LEAST)  # columns that have a value in every row


def refuse_impossible(table: pa.Table, path: Path, least: Mapping[str, int] = LEAST, whole: Sequence[str] = WHOLE) -> None:
    """Raise ValueError, with the column's name, for rows that no clip can have. least: smallest number by column. whole: without nulls."""
    import pyarrow.compute as pc

    def wrong(name: str, what: str) -> ValueError:
        return ValueError(f"{path} is damaged: {name} {what}; prepare or index the dataset again")

    for name in table.column_names if table.num_rows else ():
        column = table[name]
        if name in whole and column.null_count:
            raise wrong(name, f"is missing in {counted(column.null_count, 'row')}")
        if name in least and (low := pc.min(column).as_py()) is not None and low < least[name]:
            raise wrong(name, f"is {low}, and {least[name]} is the least that fits")
        if name == "fps" and not pc.all(pc.and_(pc.greater_equal(column, RATES[0]), pc.less_equal(column, RATES[1]))).as_py():
            raise wrong(name, f"is not a number from {RATES[0]:g} to {RATES[1]:g}")
        if name.endswith("sha256") and not pc.all(pc.match_substring_regex(column, "^[0-9a-f]{64}$")).as_py():
            raise wrong(name, "is no SHA-256 in hexadecimal")
        if name == "captions" and any(part.null_count for part in column.combine_chunks().flatten().flatten()):
            raise wrong(name, "lack a kind, a text or a captioner")


class RowFiles:
    """Reads rows of many parquet files, a group of rows at a time, and caches the last groups; a file's hash is checked at its first read.

    entries: one mapping per file with "meta", "meta_sha256" and "clips". Rows are counted through all files.
    """

    def __init__(self, folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.entries = folder, entries
        self.starts = np.concatenate([[0], np.cumsum([entry["clips"] for entry in entries], dtype=np.int64)])
        self._checked: set[int] = set()
        self._footers: OrderedDict[int, tuple[pq.FileMetaData, np.ndarray]] = OrderedDict()
        self._kept: OrderedDict[tuple[int, int, tuple[str, ...]], pa.Table] = OrderedDict()

    def locate(self, row: int) -> tuple[int, int]:
        """The number of the file that holds a row, and the row's number within that file."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return number, row - int(self.starts[number])

    def values(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """The values of some columns in one row."""
        number, inner = self.locate(row)
        self.check(number)
        _, ends = self._footer(number)
        group = int(np.searchsorted(ends, inner, side="right"))
        table = self._group(number, group, columns)
        place = inner - (int(ends[group - 1]) if group else 0)
        return {name: table[name][place].as_py() for name in columns}

    def check(self, number: int) -> None:
        """Compare a file with its hash in the dataset, once per process."""
        if number in self._checked:
            return
        entry = self.entries[number]
        path = self.folder / entry["meta"]
        if not path.is_file():
            raise ValueError(f"{path} is missing, dataset.json lists it; prepare or index the dataset again")
        if file_hash(path, most=parquet.WHOLE) != entry["meta_sha256"]:
            raise ValueError(f"{path} has changed since dataset.json was written; prepare or index the dataset again")
        self._checked.add(number)

    def whole(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of one file."""
        self.check(number)
        entry = self.entries[number]
        table = read_table(self.folder / entry["meta"], columns)
        if table.num_rows != entry["clips"]:
            raise ValueError(
                f"{self.folder / entry['meta']} has {counted(table.num_rows, 'row')}, dataset.json says {entry['clips']}; index it again"
            )
        return table

    def _footer(self, number: int) -> tuple[pq.FileMetaData, np.ndarray]:
        """The parquet footer of a file, and the cumulative number of rows at the end of each row group."""
        if number in self._footers:
            self._footers.move_to_end(number)
            return self._footers[number]
        with parquet.opened(self.folder / self.entries[number]["meta"]) as file:
            about = file.metadata
        ends = np.cumsum([about.row_group(group).num_rows for group in range(about.num_row_groups)], dtype=np.int64)
        self._footers[number] = (about, ends)
        if len(self._footers) > _KEPT_FOOTERS:
            self._footers.popitem(last=False)
        return about, ends

    def _group(self, number: int, group: int, columns: tuple[str, ...]) -> pa.Table:
        place = (number, group, columns)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        path, (about, _) = self.folder / self.entries[number]["meta"], self._footer(number)
        with parquet.opened(path, about=about) as file:
            table = _completed(parquet.taken(file, path, columns, group=group), columns)
            refuse_impossible(table, path)
        self._kept[place] = table
        if len(self._kept) > _KEPT_GROUPS:
            self._kept.popitem(last=False)
        return table
