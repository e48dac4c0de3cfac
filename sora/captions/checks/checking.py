"""Checks all captions of a recaptioning and writes the table that people and rules read.

WORK/NAME/captions.parquet   one row for each clip: what `rows` has, the scores that were compared, and `flags`
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sora.captions.checks.flags import FLAGS, CaptionChecks
from sora.captions.checks.scores import score_flags
from sora.captions.checks.words import agreement, word_flags
from sora.captions.rows import ROWS, all_rows, captioned_rows
from sora.data.index.index import Index
from sora.gate import parquet
from sora.system.files import local, whole_file

TABLE = "captions.parquet"
CHECKED = pa.schema([*ROWS, ("flags", pa.list_(pa.string()))])
_ROWS = 4096  # rows that are read together
_NOTES = ("cut", "steering", "repaired")


@dataclass
class FlagCounts:
    """Counts over all clips. flags: clips by flag. flagged: with any flag. captioned: with captions."""

    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    captioned: int = 0


def check_captions(index: Index, rows: Path, shards: Sequence[int], checks: CaptionChecks) -> FlagCounts:
    """Write the table with the flags of all captions. index: of the dataset, for the scores. rows: the folder of the rows of its shards."""
    seen = Counter(_digest(row) for row in all_rows(rows, shards, ["short", "dense"]))
    one_shot = index.described.get("about", {}).get("command") == "curate"
    counts = FlagCounts()
    with whole_file(rows / TABLE, lasting=False) as staging, pq.ParquetWriter(local(staging), CHECKED, compression="zstd") as writer:
        for shard in shards:
            found = captioned_rows(rows, shard)
            for row in found:
                row["flags"] = _flags(index, row, checks, same=seen[_digest(row)], one_shot=one_shot) if not row["reason"] else []
                counts.captioned += not row["reason"]
                counts.flagged += bool(row["flags"])
                counts.flags.update(row["flags"])
            writer.write_table(pa.Table.from_pylist(found, schema=CHECKED), row_group_size=_ROWS)
    return counts


def _flags(index: Index, row: dict[str, Any], checks: CaptionChecks, *, same: int, one_shot: bool) -> list[str]:
    structured = json.loads(row["structured"])
    found = [*word_flags(row["short"], row["dense"], checks), *(note for note in row["notes"] if note in _NOTES)]
    found += score_flags(row["dense"], structured.get("camera", ""), index.scores(row["row"]), checks, one_shot=one_shot)
    found += ["same_as_others"] if same > checks.same else []
    found += ["disagrees"] if row["second"] and agreement(row["dense"], row["second"]) < checks.agreement else []
    return sorted(found, key=list(FLAGS).index)


def _digest(row: dict[str, Any]) -> bytes:
    return hashlib.blake2b(f"{row['short']}\0{row['dense']}".lower().encode("utf-8", "surrogatepass"), digest_size=8).digest()


def checked(rows: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table, in order."""
    path = rows / TABLE
    with parquet.opened(path, within=rows) as file:
        for batch in parquet.batches(file, path, CHECKED.names):
            yield from batch.to_pylist()
