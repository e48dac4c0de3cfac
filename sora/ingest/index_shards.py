"""`sora data index`: writes rows, columns and dataset.json for shards that lie anywhere into a folder of this machine."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from sora.data.index.columns import FOLDER as COLUMNS
from sora.data.index.index import FORM
from sora.data.index.unfinished import INDEXING, of_videos
from sora.data.index.unique_keys import KeyFile
from sora.data.index.writer import DATASET, IndexWriter
from sora.data.shards.stores import REMOTE, RemoteStore, Store
from sora.gate.files import opened
from sora.gate.forms import fitting
from sora.gate.hosts import refuse_slow
from sora.gate.texts import CARD, LIST, json_of, read_json
from sora.ingest.index_progress import IndexProgress
from sora.ingest.survey import REFUSAL, Choices, Refusal, Survey, expanded, rows_of, survey
from sora.ingest.tree import Passed, legible, tree
from sora.system.files import STAGING, whole_file, write_json
from sora.system.guarded_pool import in_order
from sora.system.terminal import counted
from sora.video.decoding import pictures
from sora.video.files import PYAV

REFUSED, REPORT = "refused.jsonl", "report.json"
_OURS = (
    DATASET,
    REFUSED,
    REPORT,
    REMOTE,
    "meta-*.parquet",
    f"{COLUMNS}/*",
    f"{INDEXING}/*",
    "captions-*",
    "scores-*",
    "selection-*",
    "latent*",
    "text-*",
    "show.html",
)
_TABLE = ", and no captions are read from a table beside shards: unpack them into a folder for sora prepare captions=FILE"
_METADATA = re.compile(rf"meta-\d{{6,}}\.parquet|{COLUMNS}/[a-z0-9_]+\.bin")  # the only files that a mirror copies
_MIRRORED = 4 << 30  # bytes of metadata that a mirror copies at most
_VERSION = 2  # counts up when a shard gives other rows; progress of another version is dropped


def names_of(store: Store, pattern: str) -> list[str]:
    """The shards of a store that match a pattern (`*.tar`, `*/*.tar`) or a range in braces, in order, without latents and hidden files."""
    if "{" in pattern:
        return expanded(pattern)
    if isinstance(store, RemoteStore):
        found = store.names(pattern)
    else:
        folder = Path(store.place(""))
        if not folder.is_dir():
            raise ValueError(f"index={folder} is no folder")
        paths = (path for path in folder.glob(pattern) if path.is_file())
        found = sorted(path.relative_to(folder).as_posix() for path in paths if legible(str(path)) == str(path))
    kept = [name for name in found if not name.rpartition("/")[2].startswith((".", "latent-"))]
    if not kept:
        place = store.place("")
        videos = "" if store.remote else f"; {of_videos(place)}"
        raise ValueError(f"{place} holds no shard that fits shards={pattern}; name them, such as shards=*/*.tar{videos}")
    return kept


def passed_over(store: Store, pattern: str, shards: Sequence[str], output: Path) -> list[Passed]:
    """The files beside the shards that are no shards, each with the reason; files of an index in `output` itself are not listed."""

    def passed(name: str) -> Passed:
        why = _TABLE if PurePosixPath(name).suffix.lower() in (".csv", ".tsv", ".jsonl") else ""
        return Passed(name, f"does not fit shards={pattern}{why}")

    if isinstance(store, RemoteStore):
        beside = [] if "{" in pattern else store.names("*")
        return [passed(name) for name in sorted(set(beside) - {shard.rpartition("/")[2] for shard in shards}) if not _ours(name)]
    folder = Path(store.place(""))
    held = tree(folder, key="index", besides=None if output.resolve() == folder.resolve() else output)
    others = sorted(set(held.files) - set(shards))
    return sorted([*held.passed, *(passed(name) for name in others if not _ours(name))])


def _ours(name: str) -> bool:
    """Whether a file in a dataset's folder is one that this program writes there."""
    return any(fnmatchcase(name, pattern) for pattern in _OURS)


def index_shards(
    store: Store,
    shards: Sequence[str],
    output: Path,
    choices: Choices,
    *,
    licence: str,
    max_bad_share: float,
    workers: int,
    seconds: float,
    memory_gb: float,
    about: dict[str, Any],
    passed: Sequence[Passed] = (),
    report: Callable[[int, int], None] = lambda shards, clips: None,
) -> dict[str, Any]:
    """Index shards into `output` and return the content of dataset.json, with "refused" and "notes" counted by kind and the `passed` files.

    Every refusal is a line of `refused.jsonl`. Shards that an earlier, stopped call with these choices finished are reused, unless they
    have changed since ("kept": how many). report: called with the numbers of shards and clips that are done.

    Raises:
        ValueError: no clip can be used, or more than `max_bad_share` of the samples are refused; no dataset.json is written then.
    """
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share is {max_bad_share}; it is a share, from 0 to 1")
    settings = {"version": _VERSION, "place": store.place(""), "licence": licence, "reader": f"{PYAV.identity()} {pictures.identity()}"}
    settings |= asdict(choices)
    settings = json.loads(json.dumps(settings))  # in the form in which it is read back
    with IndexProgress(output, settings) as parts:
        for left in (path for name in (DATASET, REFUSED, REPORT, "meta-*.parquet") for path in output.glob(f"{STAGING}*-{name}")):
            left.unlink()  # left by a killed process: the lock is ours now
        done, kept, clips = 0, 0, 0

        def surveys() -> Iterator[Survey]:
            nonlocal done, kept, clips
            for shard in shards:
                part = parts.find(shard, store.stamp(shard))
                if part is None:
                    yield survey(store, shard, choices)
                else:
                    done, kept, clips = done + 1, kept + 1, clips + part.clips

        run = partial(in_order, workers=workers, seconds=seconds, memory_gb=memory_gb, apart=not store.remote)
        for surveyed, rows, refused in rows_of(surveys(), store, choices, run):
            rows = [row if row.licence else replace(row, licence=licence) for row in rows]
            part = parts.write(surveyed, rows, refused)
            done, clips = done + 1, clips + part.clips
            report(done, clips)
        wanted = choices.words.chosen
        described = _joined(parts, shards, output, licence=licence, max_bad_share=max_bad_share, about=about, passed=passed, kinds=wanted)
        parts.remove()
    return described | {"kept": kept, "passed": list(passed)}


def _joined(
    parts: IndexProgress,
    shards: Sequence[str],
    output: Path,
    *,
    licence: str,
    max_bad_share: float,
    about: dict[str, Any],
    passed: Sequence[Passed],
    kinds: Collection[str],
) -> dict[str, Any]:
    """Join the rows of all shards into one index. Of a key that several shards have, the first clip is used and the others are refused.

    kinds: of captions whose keys were set, so that a note says if no clip has any.
    """
    again = _again(parts, shards)
    refused: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    writer, start = IndexWriter(output, licence=licence), 0
    with closing(writer), whole_file(output / REFUSED) as staging, open(staging, "w", encoding="utf-8") as lines:
        for shard in shards:
            part, table = parts.of(shard), parts.table(shard)
            first, last = np.searchsorted(again, (start, start + table.num_rows))
            twice = np.isin(np.arange(table.num_rows), again[first:last] - start)
            start += table.num_rows
            why = "another sample of the dataset has the same key; set key_with_shard=true if every shard counts anew"
            own = [Refusal(shard, _name(values), "duplicate", why) for values in table.filter(pa.array(twice)).to_pylist()]
            for refusal in part.refused + own:
                refused[refusal.kind] += 1
                lines.write(json.dumps(refusal._asdict()) + "\n")
            notes.update(part.notes)
            if not twice.all():
                writer.add_table(table.filter(pa.array(~twice)), size=part.size or None)
    _refuse_too_many(writer.rows, refused, max_bad_share, output)
    for kind in sorted(set(kinds) - writer.kinds()):
        notes[f"clips, and none has a caption of kind {kind}, whose keys captions.keys names"] = writer.rows
    tallies = {"refused": dict(refused), "notes": dict(notes)}
    beside = [one._asdict() for one in passed]
    write_json(output / REPORT, {"clips": writer.rows, "splits": writer.splits, **tallies, "passed_over": beside})
    return writer.finish(about) | tallies


def _again(parts: IndexProgress, shards: Sequence[str]) -> np.ndarray:
    """The rows, counted through all shards, whose keys came before."""
    with closing(KeyFile(parts.folder)) as keys:
        for shard in shards:
            keys.add(parts.table(shard)["key"].to_pylist())
        return keys.repeated()


def _name(values: dict[str, Any]) -> str:
    """The shard's own name for the sample of a row."""
    return json.loads(values["extra"] or "{}").get("name", values["key"])


def _refuse_too_many(clips: int, refused: Counter[str], most: float, output: Path) -> None:
    bad = sum(refused.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in refused.most_common())
    if not clips:
        raise ValueError(f"not one clip can be used ({kinds or 'the shards are empty'}); {output / REFUSED} says why{_first(output)}")
    if bad > most * (clips + bad):
        raise ValueError(
            f"{bad} of {counted(clips + bad, 'sample')} cannot be used ({kinds}), over max_bad_share={most:g}; see {output / REFUSED}"
            f"{_first(output)}"
        )


def _first(output: Path) -> str:
    """The first refusal, for an error message."""
    with opened(output / REFUSED) as lines:
        line = lines.readline(CARD.bytes)
    if not line:
        return ""
    told = Refusal(**fitting(json_of(line, limit=CARD), REFUSAL, str(output / REFUSED)))
    return f": {' of '.join(part for part in (told.key, told.shard) if part)}: {told.reason}"


def mirror(store: Store, output: Path, *, most: int = _MIRRORED) -> dict[str, Any]:
    """Copy the metadata of a dataset that lies elsewhere, each file checked against its hash; its shards stay where they are.

    Nothing else is copied, whatever that dataset.json lists, above all no remote.json, which only the user may write. most: bytes in all.

    Raises:
        ValueError: dataset.json lists a file that is no metadata, or content differs from its hash, or there are more than `most` bytes.
    """
    output.mkdir(parents=True, exist_ok=True)
    partial = output / f"{DATASET}.partial"
    left = most - _copy(store, DATASET, partial, None, most=min(most, LIST.bytes))
    described = fitting(read_json(partial, limit=LIST), FORM, store.place(DATASET))
    wanted = {entry["meta"]: entry["meta_sha256"] for entry in described["shards"]}
    wanted |= {f"{COLUMNS}/{name}.bin": digest for name, digest in ((described.get("columns") or {}).get("sha256") or {}).items()}
    strange = next((name for name in wanted if not _METADATA.fullmatch(name)), None)
    if strange is not None:
        raise ValueError(f"{store.place(DATASET)} lists {strange!r}, which is no file of metadata; it is not to be trusted")
    for name, digest in wanted.items():
        left -= _copy(store, name, output / name, digest, most=left)
    partial.replace(output / DATASET)
    return described


def _copy(store: Store, name: str, path: Path, digest: str | None, *, most: int) -> int:
    """Copy a file of at most `most` bytes, check its hash and return its size in bytes."""
    file, _ = store.open(name)
    found, size, began = sha256(), 0, time.monotonic()
    with closing(file), whole_file(path) as staging, open(staging, "wb") as copied:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            if size > most:
                raise ValueError(
                    f"{store.place(name)} has more than the {most:,} bytes that are left for a dataset's metadata; raise metadata_mb, or "
                    "fetch that dataset and index it here"
                )
            refuse_slow(size, time.monotonic() - began, store.place(name))
            found.update(chunk)
            copied.write(chunk)
        if digest is not None and found.hexdigest() != digest:
            raise ValueError(f"{store.place(name)} is not what its {DATASET} says; prepare or index that dataset again")
    return size
