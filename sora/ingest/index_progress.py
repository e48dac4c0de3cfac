"""The progress of `sora data index`: finished shards, from which a run that was stopped resumes.

indexing/settings.json    the settings that the rows depend on besides the shards; other settings begin anew
indexing/<shard>.parquet  the rows of a shard, <shard> being a hash of its name
indexing/<shard>.json     says that this file is whole, the shard's state, and the refused samples; written last
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
)  # the form of indexing/….json


@dataclass(frozen=True)
class IndexedShard:
    """The result of one shard. stamp: the shard's state when it was read. size: of the shard in bytes, 0 if it is not known."""

    shard: str
    stamp: str
    size: int
    clips: int
    sha256: str
    notes: dict[str, int]
    refused: list[Refusal]


class IndexProgress:
    """The finished shards in a folder below `output`. Raises ValueError if another process indexes into it.

    settings: JSON-able. `with IndexProgress(…) as parts`; call `remove` when the index is whole.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(output) / INDEXING
        self._alone = ExitStack()
        self._alone.enter_context(alone_in(Path(output), "indexing into"))  # the lock ends with this process
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
        """The result of a shard in this state; None if there is none, or only a part."""
        path = self._path(shard, "json")
        if not path.is_file():
            return None
        try:
            part = self.of(shard)
            whole = part.shard == shard and part.stamp == stamp and file_hash(self._path(shard, "parquet")) == part.sha256
        except (ValueError, OSError):  # half a file counts as none: the shard is read again
            return None
        return part if whole else None

    def of(self, shard: str) -> IndexedShard:
        path = self._path(shard, "json")
        known = fitting(read_json(path, limit=LIST, within=self.folder), FORM, str(path))
        return IndexedShard(**{**known, "refused": [Refusal(**one) for one in known["refused"]]})

    def write(self, surveyed: Survey, rows: Sequence[ClipRow], refused: Sequence[Refusal]) -> IndexedShard:
        """Save the result of a shard."""
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
