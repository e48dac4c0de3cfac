"""Captions that are added to a dataset later, in files of their own: neither the shards nor their metadata are written again.

    captions-<set>.json            the dataset, the captioner, and the files with their hashes; written last
    captions-<set>-000000.parquet  key and captions of clips of one shard, or of some of them

All sets of a folder are in force, in the order of their names. A caption of a set replaces the clip's earlier caption of the same kind and
captioner, and is added otherwise; which kinds are trained on is the run's choice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sora.data.index.rows import CAPTIONS, Caption, caption_identity
from sora.gate import parquet
from sora.gate.forms import Fields, Maybe, beside, count, digest, fitting, matching, text
from sora.gate.texts import LIST, read_json
from sora.system.files import file_hash, local, text_hash, whole_file, write_json

VERSION = 1
SCHEMA = pa.schema([("key", pa.string()), ("captions", CAPTIONS)])
NAME = re.compile(r"[a-z0-9_]{1,64}")
_KEPT = 64  # files whose rows are kept in memory
_ENTRY = {"shard": count, "file": beside, "sha256": digest, "captions": text}
FORM = Fields({"name": matching(NAME.pattern, "a name of small letters"), "dataset": text, "files": [_ENTRY]}, may={"sha256": Maybe(text)})


class CaptionSetWriter:
    """Writes the set `name` of captions into a dataset's folder: one file for each shard that has new captions, then `finish`.

    dataset: the dataset's fingerprint. The captions are in force only after `finish`; a set that exists already is refused.
    """

    def __init__(self, folder: Path | str, name: str, *, dataset: str) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a set of captions; use lower case letters, digits and '_'")
        self.folder, self.name, self.dataset = Path(folder), name, dataset
        if manifest_path(self.folder, name).exists():
            raise ValueError(f"{manifest_path(self.folder, name)} exists already; give the set another name, or delete it")
        self._files: dict[int, dict[str, Any]] = {}

    def write(self, shard: int, captions: Mapping[str, Sequence[Caption]]) -> None:
        """Write new captions of clips of a shard, by the clips' keys; a second call for the same shard replaces the first."""
        path = self.folder / f"captions-{self.name}-{shard:06d}.parquet"
        columns = {"key": list(captions), "captions": [[asdict(caption) for caption in said] for said in captions.values()]}
        with whole_file(path) as staging:
            pq.write_table(pa.table(columns, schema=SCHEMA), local(staging), compression="zstd")
        found = hashlib.sha256()
        for key, said in zip(columns["key"], columns["captions"], strict=True):
            found.update(caption_identity(key, said) + b"\n")
        entry = {"shard": shard, "file": path.name, "sha256": file_hash(path), "clips": len(captions), "captions": found.hexdigest()}
        self._files[shard] = entry

    def finish(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest that puts the set in force. about: JSON-able facts such as the captioner and its prompt."""
        if not self._files:
            raise ValueError(f"no caption was written to the set {self.name}; there is nothing to add")
        files = [self._files[shard] for shard in sorted(self._files)]
        described = {"version": VERSION, "name": self.name, "dataset": self.dataset, "files": files}
        described |= {"sha256": text_hash(json.dumps(files)), "about": dict(about)}
        path = manifest_path(self.folder, self.name)
        write_json(path, described)
        return path


def manifest_path(folder: Path, name: str) -> Path:
    return Path(folder) / f"captions-{name}.json"


class CaptionSets:
    """All finished sets of captions in a dataset's folder."""

    def __init__(self, folder: Path | str, *, dataset: str) -> None:
        self.folder = Path(folder)
        self.described = [_opened(path, dataset) for path in sorted(self.folder.glob("captions-*.json"))]
        self._files = [{entry["shard"]: entry for entry in described["files"]} for described in self.described]
        self._kept: OrderedDict[str, dict[str, list[dict[str, str]]]] = OrderedDict()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all captions of all sets; "" if there is no set."""
        listed = [f"{one['name']}\t{entry['captions']}" for one in self.described for entry in one["files"]]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest() if listed else ""

    def over(self, captions: Sequence[Caption], *, key: str, shard: int) -> tuple[Caption, ...]:
        """A clip's captions after all sets have replaced some of them and added others."""
        found = {(said.kind, said.captioner, number): said for number, said in enumerate(captions)}
        for files in self._files:
            new = [Caption(**said) for said in self._of(files[shard]).get(key, ())] if shard in files else []
            replaced = {(said.kind, said.captioner) for said in new}
            found = {place: said for place, said in found.items() if place[:2] not in replaced}
            found |= {(said.kind, said.captioner, len(found) + number): said for number, said in enumerate(new)}
        return tuple(found.values())

    def files(self) -> list[dict[str, Any]]:
        return [entry for files in self._files for entry in files.values()]

    def keys(self, entry: Mapping[str, Any]) -> list[str]:
        """The keys of the clips that a file has captions for; a file that is missing, damaged or changed raises `ValueError`."""
        return list(self._of(entry))

    def _of(self, entry: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
        name = entry["file"]
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        path = self.folder / name
        if not path.is_file() or file_hash(path, most=parquet.WHOLE) != entry["sha256"]:
            raise ValueError(f"{path} is missing or has changed; write the set of captions again, or delete its captions-*.json")
        with parquet.opened(path, within=self.folder) as file:
            table = parquet.taken(file, path).cast(SCHEMA)
        self._kept[name] = dict(zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True))
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[name]


def _opened(path: Path, dataset: str) -> dict[str, Any]:
    described = read_json(path, limit=LIST, within=path.parent)
    if not isinstance(described, dict) or described.get("version") != VERSION:
        raise ValueError(f"{path} is no set of captions of version {VERSION}; write it again or delete it")
    fitting(described, FORM, str(path), "write it again or delete it")
    whole = path.name == f"captions-{described['name']}.json"
    if not whole or described.get("sha256") not in (None, text_hash(json.dumps(described["files"]))):  # old sets have none
        raise ValueError(f"{path} is damaged: its name or its files are none; write it again or delete it")
    if described.get("dataset") != dataset:
        raise ValueError(f"{path} is of another dataset ({str(described.get('dataset'))[:12]}, here is {dataset[:12]}); caption it again")
    return described
