"""Writes a dataset: shards (unless they only get indexed), rows, columns and, at a clean end, `dataset.json`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sora.data.index.columns import ColumnWriter
from sora.data.index.rows import ClipFacts, ClipRow, caption_identity, clip_row, identity, table_of, write_table
from sora.data.shards.shards import ShardWriter
from sora.gate import trust
from sora.system.files import file_hash, write_json

VERSION = 2
DATASET = "dataset.json"


class Fingerprints:
    """Running hashes of a dataset's clips and of their captions, updated with each table of rows; the captions' also for each split."""

    def __init__(self) -> None:
        self._clips = hashlib.sha256()
        self._captions: dict[str | None, _Joined] = {None: _Joined()}

    def add(self, table: pa.Table) -> None:
        """Update the hashes with the next rows, a table of `rows.table_of`."""
        told = [table[name].to_pylist() for name in ("key", "sha256", "frames", "fps", "height", "width", "split")]
        for facts, captions in zip(zip(*told, strict=True), table["captions"].to_pylist(), strict=True):
            self._clips.update(identity(*facts))
            said = caption_identity(facts[0], captions)
            for split in (None, facts[-1]):
                self._captions.setdefault(split, _Joined()).add(said)

    @property
    def clips(self) -> str:
        return self._clips.hexdigest()

    def captions(self) -> dict[str, Any]:
        splits = {split: found.hexdigest() for split, found in self._captions.items() if split is not None}
        return {"whole": self._captions[None].hexdigest(), "splits": splits}


class _Joined:
    """SHA-256 of lines with newlines between them."""

    def __init__(self) -> None:
        self._hash, self._some = hashlib.sha256(), False

    def add(self, line: bytes) -> None:
        self._hash.update(b"\n" + line if self._some else line)
        self._some = True

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class CaptionCounts:
    """For each split, how many clips have a caption of each kind and how many have none, updated with each table of rows."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, Any]] = {}

    def add(self, table: pa.Table) -> None:
        """Count the next rows, a table of `rows.table_of`."""
        for split, captions in zip(table["split"].to_pylist(), table["captions"].to_pylist(), strict=True):
            counts = self.splits.setdefault(split, {"clips": 0, "without": 0, "kinds": {}})
            counts["clips"] += 1
            counts["without"] += not captions
            for kind in {said["kind"] for said in captions}:
                counts["kinds"][kind] = counts["kinds"].get(kind, 0) + 1

    def described(self) -> dict[str, Any]:
        """The counts for dataset.json, the same whatever the order of the rows."""
        return {split: {**counts, "kinds": dict(sorted(counts["kinds"].items()))} for split, counts in sorted(self.splits.items())}


class IndexWriter:
    """Writes the rows of shards, one shard after another, and `dataset.json` at the end.

    sealing: put this user's seal into dataset.json, which says that this user made the clips (`sealed`).
    """

    def __init__(self, folder: Path | str, *, licence: str, sealing: bool = False) -> None:
        self.folder, self.licence, self.sealing = Path(folder), licence, sealing
        self.rows = 0
        self._columns = ColumnWriter(self.folder)
        self._fingerprints, self._captioned = Fingerprints(), CaptionCounts()
        self._entries: list[dict[str, Any]] = []
        self._totals = {"clips": 0, "frames": 0, "seconds": 0.0, "bytes": 0, "captions": 0}
        self.splits: dict[str, int] = {}

    def add(self, rows: Sequence[ClipRow], *, size: int | None) -> None:
        """Write the rows of the next shard. size: the shard's size in bytes; None if its store does not say."""
        self.add_table(table_of([row if row.licence else replace(row, licence=self.licence) for row in rows]), size=size)

    def add_table(self, table: pa.Table, *, size: int | None) -> None:
        """Write the rows of the next shard, as a table."""
        meta = self.folder / f"meta-{len(self._entries):06d}.parquet"
        write_table(meta, table)
        self._columns.write(table)
        self._fingerprints.add(table)
        self._captioned.add(table)
        for split, count in Counter(table["split"].to_pylist()).items():
            self.splits[split] = self.splits.get(split, 0) + count
        more = {"clips": table.num_rows, "frames": sum(table["frames"].to_pylist()), "seconds": sum(table["duration"].to_pylist())}
        more |= {"bytes": sum(table["size"].to_pylist()), "captions": sum(pc.list_value_length(table["captions"]).to_pylist())}
        for key, value in more.items():
            self._totals[key] += value
        self.rows += table.num_rows
        entry = {"shard": table["shard"][0].as_py(), "bytes": size, "clips": table.num_rows, "meta": meta.name}
        self._entries.append({**entry, "meta_sha256": file_hash(meta), "meta_bytes": meta.stat().st_size})

    def close(self) -> None:
        self._columns.close()

    def kinds(self) -> set[str]:
        """The kinds of captions that any clip so far has."""
        return {kind for counts in self._captioned.splits.values() for kind in counts["kinds"]}

    def finish(self, about: Mapping[str, Any], *, before: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Write `dataset.json`, which says that the dataset is whole, and return its content. before: is called with the content first."""
        described = {
            "version": VERSION,
            "fingerprint": self._fingerprints.clips,
            "licence": self.licence,
            "totals": self._totals | {"seconds": round(self._totals["seconds"], 3)},
            "splits": self.splits,
            "captions": self._fingerprints.captions(),
            "captioned": self._captioned.described(),
            "columns": self._columns.finish(),
            "shards": self._entries,
            "about": dict(about),
        }
        if self.sealing:
            described["seal"] = trust.seal(*_clips(described))
        if before is not None:
            before(described)
        write_json(self.folder / DATASET, described)
        return described


def sealed(described: Mapping[str, Any]) -> bool:
    """Whether dataset.json bears this user's seal, so that this user wrote the clips."""
    return trust.sealed(described.get("seal"), *_clips(described))


def _clips(described: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values that a seal covers: the parquet files' entries, whose hashes cover the hash of every clip."""
    return "clips", described["fingerprint"], [entry["meta_sha256"] for entry in described["shards"]]


def written_here(described: Mapping[str, Any]) -> bool:
    """Whether dataset.json says that sora wrote the clips, for any user, rather than only indexed them."""
    about = described.get("about")
    return "seal" in described or (isinstance(about, Mapping) and about.get("command") == "prepare")


class DatasetWriter:
    """Writes a dataset of clips: shards, their index and, at a clean end, `dataset.json`.

    `with DatasetWriter(folder, ...) as writer: writer.write(facts, mp4); ...; writer.finish(about)`. Without `finish` the folder has no
    `dataset.json`, and `Index.open` refuses it.
    """

    def __init__(self, folder: Path | str, *, licence: str, max_bytes: int, suffix: str = "mp4") -> None:
        self.folder, self.licence, self.suffix = Path(folder), licence, suffix
        self.rows = 0
        self._shards = ShardWriter(folder, prefix="video", suffixes=(suffix, "json"), max_bytes=max_bytes)
        self._index = IndexWriter(folder, licence=licence, sealing=True)
        self._open_rows: list[ClipRow] = []

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._shards.__exit__(kind, error, trace)
        self._index.close()

    def write(self, facts: ClipFacts, media: bytes) -> ClipRow:
        """Append a clip to the shards and the index."""
        known = {name: value for name, value in asdict(facts).items() if name != "captions"}
        known |= {"duration": facts.duration, "captions": [asdict(caption) for caption in facts.captions]}
        described = json.dumps(known, allow_nan=False).encode()
        member, _ = self._shards.write(facts.key, {self.suffix: media, "json": described})
        if self._open_rows and self._open_rows[0].shard != member.shard:
            self._flush()
        row = clip_row(facts, member, licence=self.licence)
        self._open_rows.append(row)
        self.rows += 1
        return row

    def finish(self, about: Mapping[str, Any], *, before: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Close the last shard and write `dataset.json`. about: JSON-able facts for it, such as recipe and source. See `IndexWriter`."""
        if not self.rows:
            raise ValueError(f"no clip was written to {self.folder}; there is nothing to train on")
        self._shards.__exit__(None, None, None)
        self._flush()
        return self._index.finish(about, before=before)

    def _flush(self) -> None:
        rows, self._open_rows = self._open_rows, []
        self._index.add(rows, size=(self.folder / rows[0].shard).stat().st_size)
