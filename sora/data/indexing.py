"""`sora data index`: rows, columns and dataset.json for shards that lie somewhere, written into a folder of this machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sora.data.columns import FOLDER as COLUMNS
from sora.data.foreign import Choices, Refusal, expanded, rows_of, survey
from sora.data.stores import RemoteStore, Store
from sora.data.workers import in_order
from sora.data.writing import DATASET, IndexWriter
from sora.storage import read_json, whole_file, write_json

REFUSED, REPORT = "refused.jsonl", "report.json"


def names_of(store: Store, pattern: str) -> list[str]:
    """The shards below a store that fit a pattern (`*.tar`, `*/*.tar`), or that a range in braces names, in order.

    Latents and hidden files are left out.
    """
    if "{" in pattern:
        return expanded(pattern)
    if isinstance(store, RemoteStore):
        found = store.names(pattern)
    else:
        folder = Path(store.place(""))
        if not folder.is_dir():
            raise ValueError(f"index={folder} is no folder")
        found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    kept = [name for name in found if not name.rpartition("/")[2].startswith((".", "latent-"))]
    if not kept:
        raise ValueError(f"{store.place('')} holds no shard that fits shards={pattern}; name them, such as shards=*/*.tar")
    return kept


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
    report: Callable[[int, int], None] = lambda shards, clips: None,
) -> dict[str, Any]:
    """Index shards into `output`; what dataset.json holds, with "refused" and "notes" counted by kind.

    Every refusal is a line of `refused.jsonl`. `report` is told how many shards and clips are done.

    Raises:
        ValueError: no clip can be used, or more than `max_bad_share` of the samples are refused; no dataset.json is written then.
    """
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share is {max_bad_share}; it is a share, from 0 to 1")
    output.mkdir(parents=True, exist_ok=True)
    refused: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    writer = IndexWriter(output, licence=licence)
    run = partial(in_order, workers=workers, seconds=seconds, memory_gb=memory_gb)
    try:
        with whole_file(output / REFUSED) as staging, open(staging, "w", encoding="utf-8") as lines:

            def refuse(refusal: Refusal) -> None:
                refused[refusal.kind] += 1
                lines.write(json.dumps(refusal._asdict()) + "\n")

            surveys = (survey(store, shard, choices) for shard in shards)
            for done, (surveyed, rows) in enumerate(rows_of(surveys, store, choices, run, refuse), start=1):
                notes.update(surveyed.notes)
                if rows:
                    writer.add(rows, size=surveyed.size or None)
                report(done, writer.rows)
    finally:
        writer.close()
    notes += Counter()  # without zeros
    _refuse_too_many(writer.rows, refused, max_bad_share, output)
    described = writer.finish(about)
    counted = {"refused": dict(refused), "notes": dict(notes)}
    write_json(output / REPORT, {"clips": writer.rows, "splits": described["splits"], **counted})
    return described | counted


def _refuse_too_many(clips: int, refused: Counter[str], most: float, output: Path) -> None:
    bad = sum(refused.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in refused.most_common())
    if not clips:
        raise ValueError(f"not one clip can be used ({kinds or 'the shards are empty'}); {output / REFUSED} says why")
    if bad > most * (clips + bad):
        raise ValueError(f"{bad} of {clips + bad} samples cannot be used ({kinds}), over max_bad_share={most:g}; see {output / REFUSED}")


def mirror(store: Store, output: Path) -> dict[str, Any]:
    """Copy the metadata of a dataset that lies elsewhere, each file compared with its hash; its shards stay there."""
    output.mkdir(parents=True, exist_ok=True)
    _copy(store, DATASET, output / f"{DATASET}.partial", None)
    described = read_json(output / f"{DATASET}.partial")
    wanted = {entry["meta"]: entry["meta_sha256"] for entry in described["shards"]}
    wanted |= {f"{COLUMNS}/{name}.bin": digest for name, digest in described.get("columns", {}).get("sha256", {}).items()}
    for name, digest in wanted.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{store.place(DATASET)} lists {name!r}, which leads out of its folder; it is not to be trusted")
        _copy(store, name, output / name, digest)
    (output / f"{DATASET}.partial").replace(output / DATASET)
    return described


def _copy(store: Store, name: str, path: Path, digest: str | None) -> None:
    file, _ = store.open(name)
    found = sha256()
    with closing(file), whole_file(path) as staging, open(staging, "wb") as copied:
        while chunk := file.read(1 << 20):
            found.update(chunk)
            copied.write(chunk)
        if digest is not None and found.hexdigest() != digest:
            raise ValueError(f"{store.place(name)} is not what its {DATASET} says; prepare or index that dataset again")
