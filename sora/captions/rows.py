"""The table of a recaptioning: one row for each clip, with its captions or the reason why there are none, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sora.captions.asking import AskedClip
from sora.captions.captioner import CaptionFields
from sora.data.index.rows import write_table
from sora.gate import parquet

_TEXTS = ("key", "short", "dense", "structured", "second", "reason")
ROWS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("notes", pa.list_(pa.string())),
        ("times", pa.list_(pa.float64())),
        *((name, pa.int64()) for name in ("row", "windows", "requests", "attempts", "tokens_in", "tokens_out")),
        ("seconds", pa.float64()),
    ]
)  # structured: JSON of the other fields. second: the dense caption of the second pass, "" without one. reason: "" if there are captions.
# times: of the frames that were shown. seconds: that the last attempts took, together


def row_of(clip: AskedClip) -> dict[str, Any]:
    """The row of a clip for which nothing is left to ask."""
    fields, second, results = clip.fields(), clip.fields(1), list(clip.answers.values())
    first = clip.final(0) if clip.ids else None
    said = dict.fromkeys(("short", "dense", "structured"), "")
    if fields is not None:
        said |= {"short": fields.short, "dense": fields.dense, "structured": structured(fields)}
    counts: dict[str, Any] = {
        name: sum(getattr(one, name) for one in results) for name in ("attempts", "tokens_in", "tokens_out", "seconds")
    }
    return {
        **said,
        **counts,
        "key": clip.key,
        "row": clip.row,
        "second": second.dense if second else "",
        "reason": clip.why(),
        "notes": list(first.notes) if first else [],
        "times": clip.times,
        "windows": len(clip.windows),
        "requests": len(results),
    }


def structured(fields: CaptionFields) -> str:
    return json.dumps(fields.structured(), ensure_ascii=False)


def path_of(folder: Path, shard: int) -> Path:
    return folder / f"rows-{shard:06d}.parquet"


def write_captioned(folder: Path, shard: int, clips: Sequence[AskedClip]) -> None:
    """Write the rows of a shard, in its order."""
    rows = [row_of(clip) for clip in sorted(clips, key=lambda clip: clip.row)]
    table = pa.table({name: [row[name] for row in rows] for name in ROWS.names}, schema=ROWS)
    write_table(path_of(folder, shard), table)


def captioned_rows(folder: Path, shard: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a shard. Raises ValueError if the file is missing or damaged."""
    path = path_of(folder, shard)
    with parquet.opened(path, within=folder) as file:
        if not file.schema_arrow.equals(ROWS):
            raise ValueError(f"{path} is not as sora recaption wrote it; delete it, and the same command makes it again")
        table = parquet.taken(file, path, list(columns or ROWS.names))
        if any(column.null_count for column in table.columns):
            raise ValueError(f"{path} is damaged: a value is missing; delete it, and the same command makes it again")
        return table.to_pylist()


def all_rows(folder: Path, shards: Sequence[int], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of some shards, one after another."""
    for shard in shards:
        yield from captioned_rows(folder, shard, columns)
