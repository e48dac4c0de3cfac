"""Shards that are indexed already while others are not: what `sora data index` goes on from after it was stopped.

indexing/settings.json    what the rows depend on beside the shards; other settings begin anew
indexing/<shard>.parquet  the rows of a shard, <shard> being a hash of its name
indexing/<shard>.json     that this file is whole, which state of the shard it is of, and what was refused; written last
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from sora.data.index.rows import ClipRow, read_table, write_rows
from sora.data.index.unfinished import INDEXING
from sora.gate.forms import Fields, Named, count, digest, fitting, text
from sora.gate.texts import LIST, read_json
from sora.ingest.survey import REFUSAL, Refusal, Survey
from sora.system.files import file_hash, write_json
from sora.system.locks import alone_in

SETTINGS = "settings.json"
FORM = Fields(
    {"shard": text, "stamp": text, "size": count, "clips": count, "sha256": digest, "notes": Named(count), "refused": [REFUSAL]},
    closed=True,
)  # of indexing/….json


@dataclass(frozen=True)
class IndexedShard:
    """What came of one shard. stamp: of the shard when it was read. size: of the shard in bytes, 0 where it is not known."""

    shard: str
    stamp: str
    size: int
    clips: int
    sha256: str
    notes: dict[str, int]
    refused: list[Refusal]


class IndexProgress:
    """The shards that are done, below `output`; a folder that another process indexes into is a `ValueError`.

    settings: JSON-able. `with IndexProgress(…) as parts`; `remove` when the index is whole.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(output) / INDEXING
        self._alone = ExitStack()
        self._alone.enter_context(alone_in(Path(output), "indexing into"))  # the lock goes with this process, and with it alone
        self.folder.mkdir(exist_ok=True)
        path = self.folder / SETTINGS
        if not path.is_file() or not self._same(path, settings):
            for other in self.folder.iterdir():
                other.unlink()
            write_json(path, dict(settings))

    def __enter__(self) -> IndexProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._alone.close()

    def find(self, shard: str, stamp: str) -> IndexedShard | None:
        """What was done of a shard in this state; None if there is nothing, or something that is not whole."""
        path = self._path(shard, "json")
        if not path.is_file():
            return None
        try:
            part = self.of(shard)
            whole = part.shard == shard and part.stamp == stamp and file_hash(self._path(shard, "parquet")) == part.sha256
        except (ValueError, OSError):  # half a file is as good as none: the shard is read again
            return None
        return part if whole else None

    def of(self, shard: str) -> IndexedShard:
        path = self._path(shard, "json")
        known = fitting(read_json(path, limit=LIST, within=self.folder), FORM, str(path))
        return IndexedShard(**{**known, "refused": [Refusal(**one) for one in known["refused"]]})

    def write(self, surveyed: Survey, rows: Sequence[ClipRow], refused: Sequence[Refusal]) -> IndexedShard:
        """Keep what came of a shard."""
        shard, path = surveyed.shard, self._path(surveyed.shard, "parquet")
        self._path(shard, "json").unlink(missing_ok=True)
        write_rows(path, rows)
        notes = dict(+surveyed.notes)
        part = IndexedShard(shard, surveyed.stamp, surveyed.size, len(rows), file_hash(path), notes, list(refused))
        write_json(self._path(shard, "json"), {**asdict(part), "refused": [one._asdict() for one in refused]})
        return part

    def table(self, shard: str) -> pa.Table:
        return read_table(self._path(shard, "parquet"))

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, shard: str, suffix: str) -> Path:
        return self.folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:32]}.{suffix}"

    @staticmethod
    def _same(path: Path, settings: Mapping[str, Any]) -> bool:
        try:
            return read_json(path, within=path.parent) == dict(settings)
        except ValueError:
            return False
