"""The index of a dataset: one row per clip, as one parquet file per shard, and `dataset.json` that says the dataset is whole.

    dataset.json          version, fingerprint, totals, licence, the shards with their sizes; written last
    video-000000.tar      {key}.mp4 and {key}.json of each clip
    meta-000000.parquet   one row per clip of that shard: where it lies, its shape, its captions, its split

Captions live in the parquet files alone, so that recaptioning rewrites no shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from sora.data.shards import Member, ShardReader, ShardWriter
from sora.storage import file_hash, read_json, whole_file, write_json

VERSION = 1
DATASET = "dataset.json"
_CAPTION = pa.struct([("kind", pa.string()), ("text", pa.string()), ("captioner", pa.string())])
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
        ("captions", pa.list_(_CAPTION)),
        ("split", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),
        ("licence", pa.string()),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True)
class Caption:
    """What a clip shows. kind: "short", "dense", ... captioner: who wrote it ("original", "world", a model's name)."""

    kind: str
    text: str
    captioner: str


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a clip beside its bytes. fps in frames a second, `start` in seconds of its source, `extra` JSON-able."""

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

    @property
    def duration(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class ClipRow(ClipFacts):
    """A row of the index: the facts, and where the clip's bytes lie."""

    shard: str = ""
    suffix: str = ""
    offset: int = 0
    size: int = 0
    sha256: str = ""

    @property
    def member(self) -> Member:
        return Member(self.key, self.suffix, self.shard, self.offset, self.size, self.sha256)


class DatasetWriter:
    """Writes a dataset of clips: shards, their index and, at a clean end, `dataset.json`.

    `with DatasetWriter(folder, ...) as writer: writer.write(facts, mp4); ...; writer.finish(about)`. Without `finish` the folder
    has no `dataset.json`, and `Index.open` refuses it.
    """

    def __init__(self, folder: Path | str, *, licence: str, max_bytes: int, suffix: str = "mp4"):
        self.folder, self.licence, self.suffix = Path(folder), licence, suffix
        self.rows = 0
        self._shards = ShardWriter(folder, prefix="video", suffixes=(suffix, "json"), max_bytes=max_bytes)
        self._open_rows: list[ClipRow] = []
        self._finished: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()
        self._totals = {"clips": 0, "frames": 0, "seconds": 0.0, "bytes": 0, "captions": 0}
        self._splits: dict[str, int] = {}

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._shards.__exit__(kind, error, trace)

    def write(self, facts: ClipFacts, media: bytes) -> ClipRow:
        """Append a clip to the shards and the index."""
        known = {name: value for name, value in asdict(facts).items() if name != "captions"}
        known |= {"duration": facts.duration, "captions": [asdict(caption) for caption in facts.captions]}
        described = json.dumps(known, allow_nan=False).encode()
        member, _ = self._shards.write(facts.key, {self.suffix: media, "json": described})
        if self._open_rows and self._open_rows[0].shard != member.shard:
            self._flush()
        row = ClipRow(
            **{name: getattr(facts, name) for name in ClipFacts.__dataclass_fields__},
            **{name: getattr(member, name) for name in ("shard", "suffix", "offset", "size", "sha256")},
        )
        row = replace(row, licence=row.licence or self.licence)
        self._open_rows.append(row)
        self._count(row)
        return row

    def finish(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Close the last shard and write `dataset.json`; `about` (JSON-able: the recipe, the source) goes into it."""
        if not self.rows:
            raise ValueError(f"no clip was written to {self.folder}; there is nothing to train on")
        self._shards.__exit__(None, None, None)
        self._flush()
        described = {
            "version": VERSION,
            "fingerprint": self._hash.hexdigest(),
            "licence": self.licence,
            "totals": self._totals | {"seconds": round(self._totals["seconds"], 3)},
            "splits": self._splits,
            "shards": self._finished,
            "about": dict(about),
        }
        write_json(self.folder / DATASET, described)
        return described

    def _count(self, row: ClipRow) -> None:
        self.rows += 1
        self._hash.update(_identity(row))
        self._splits[row.split] = self._splits.get(row.split, 0) + 1
        for name, more in (
            ("clips", 1),
            ("frames", row.frames),
            ("seconds", row.duration),
            ("bytes", row.size),
            ("captions", len(row.captions)),
        ):
            self._totals[name] += more

    def _flush(self) -> None:
        rows, self._open_rows = self._open_rows, []
        shard = rows[0].shard
        meta = self.folder / shard.replace("video-", "meta-").replace(".tar", ".parquet")
        write_rows(meta, rows)
        size = (self.folder / shard).stat().st_size
        self._finished.append({"shard": shard, "bytes": size, "clips": len(rows), "meta": meta.name, "meta_sha256": file_hash(meta)})


def _identity(row: ClipRow) -> bytes:
    return f"{row.key}\t{row.sha256}\t{row.frames}\t{row.fps!r}\t{row.height}\t{row.width}\t{row.split}\n".encode()


def write_rows(path: Path, rows: Sequence[ClipRow]) -> None:
    """One shard's rows as a parquet file, whole or not at all."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name not in ("captions", "extra")}
    columns["captions"] = [[asdict(caption) for caption in row.captions] for row in rows]
    columns["extra"] = [json.dumps(dict(row.extra), allow_nan=False) if row.extra else "" for row in rows]
    with whole_file(path) as staging:
        pq.write_table(pa.table(columns, schema=SCHEMA), staging, compression="zstd")


class Index:
    """The clips of a dataset (or of one split of it), in their order of writing.

    Columns are arrays, not Python objects, so that forked workers share them. `fingerprint` covers keys, bytes and shapes, and the
    split; `dataset_fingerprint` the same for all splits; neither depends on captions, `captions_fingerprint` does.
    """

    def __init__(self, folder: Path, split: str | None, described: Mapping[str, Any], table: pa.Table):
        self.folder, self.split, self.described = folder, split, described
        self._table = table
        self._reader = ShardReader(folder)
        self.frames: Int[np.ndarray, "rows"] = _numbers(table, "frames")
        self.heights: Int[np.ndarray, "rows"] = _numbers(table, "height")
        self.widths: Int[np.ndarray, "rows"] = _numbers(table, "width")
        self.fps: Float[np.ndarray, "rows"] = _numbers(table, "fps")

    @classmethod
    def open(cls, folder: Path | str, split: str | None = None) -> Index:
        """The index of a folder that `sora prepare` finished; a missing, cut or changed file is a `ValueError` that names it."""
        folder = Path(folder)
        if not (folder / DATASET).is_file():
            why = "holds no dataset.json, so it is no finished dataset" if folder.is_dir() else "is no folder"
            raise ValueError(f"{folder} {why}; make one with: sora prepare output={folder} …")
        described = read_json(folder / DATASET)
        if described.get("version") != VERSION:
            raise ValueError(f"{folder / DATASET} has version {described.get('version')}, this program reads {VERSION}; prepare it again")
        table = pa.concat_tables([_open_shard(folder, entry) for entry in described["shards"]]).combine_chunks()
        if split is not None:
            table = table.filter(pc.equal(table["split"], split)).combine_chunks()
            if not table.num_rows:
                raise ValueError(f"{folder} has no clips of split {split!r}; it has {described['splits']}")
        return cls(folder, split, described, table)

    def __len__(self) -> int:
        return self._table.num_rows

    def __reduce__(self):
        return Index.open, (self.folder, self.split)

    @property
    def dataset_fingerprint(self) -> str:
        return self.described["fingerprint"]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.dataset_fingerprint}\t{self.split}".encode()).hexdigest()

    @cached_property
    def captions_fingerprint(self) -> str:
        listed = zip(self.keys, self._table["captions"].to_pylist(), strict=True)
        return hashlib.sha256("\n".join(json.dumps(item) for item in listed).encode()).hexdigest()

    @cached_property
    def keys(self) -> list[str]:
        return self._table["key"].to_pylist()

    def row(self, number: int) -> ClipRow:
        values = {name: self._table[name][number].as_py() for name in SCHEMA.names}
        values.pop("duration")
        values["captions"] = tuple(Caption(**caption) for caption in values["captions"])
        values["extra"] = json.loads(values["extra"]) if values["extra"] else {}
        return ClipRow(**values)

    def member(self, number: int) -> Member:
        """Where a clip's bytes lie; cheaper than its whole row."""
        return Member(*(self._table[name][number].as_py() for name in ("key", "suffix", "shard", "offset", "size", "sha256")))

    def captions(self, number: int) -> tuple[Caption, ...]:
        return tuple(Caption(**caption) for caption in self._table["captions"][number].as_py())

    def read_member(self, row: ClipRow | Member | int) -> bytes:
        """The bytes of a clip, hash checked; a shard that is cut short or changed is a `ValueError` naming shard and key."""
        if isinstance(row, int):
            row = self.member(row)
        return self._reader.read(row.member if isinstance(row, ClipRow) else row)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.ascontiguousarray(table[name].to_numpy())


def _open_shard(folder: Path, entry: Mapping[str, Any]) -> pa.Table:
    meta, shard = folder / entry["meta"], folder / entry["shard"]
    for path in (meta, shard):
        if not path.is_file():
            raise ValueError(f"{path} is missing, {folder / DATASET} lists it; prepare the dataset again")
    if file_hash(meta) != entry["meta_sha256"]:
        raise ValueError(f"{meta} has changed since {folder / DATASET} was written; prepare the dataset again")
    try:
        table = pq.read_table(meta, columns=SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{meta} is damaged: {error}") from None
    size = shard.stat().st_size
    if size != entry["bytes"]:
        ends = (table["offset"].to_numpy() + table["size"].to_numpy()) > size
        lost = table["key"].to_numpy(zero_copy_only=False)[ends]
        first = f"; the first clip that is cut is {lost[0]}, {len(lost)} are lost" if len(lost) else ""
        raise ValueError(f"{shard} has {size} bytes instead of {entry['bytes']}{first}; prepare the shard again")
    return table
