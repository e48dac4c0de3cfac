"""Sets that give each clip of a dataset something more, in files of their own: captions, scores, selections. No shard is written again.

    KIND-<set>.json            the dataset, what the set was made with, and the files with their hashes; written last
    KIND-<set>-000000.parquet  the clips' keys and values, of one shard; in its schema, the set that it belongs to

KIND is captions, scores or selection. A set is in force when its manifest is there; `sora.data.index.set_writers` writes it.

Captions: the sets in force are all of the folder, or those that `data.sets` names, in the order of their names. A caption of a set replaces
the clip's earlier caption of the same kind and captioner, and is added otherwise; which kinds are trained on is the run's choice.

Scores: all sets are in force, in the order of their names; a later score replaces one of the same name.

Selections: the one that `data.selection` names is in force. Every clip is either kept or has the one reason why it is not. A selection
carries the fingerprints that a dataset of its clips alone would have, so that two selections of the same clips are the same data to a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from sora.data.index.rows import CAPTIONS, Caption, caption_identity
from sora.gate import parquet
from sora.gate.forms import Fields, Form, Maybe, Named, beside, count, digest, fitting, matching, text
from sora.gate.texts import LIST, read_json
from sora.system.files import file_hash, text_hash
from sora.system.terminal import counted

VERSION = 1
NAME = re.compile(r"[a-z0-9_]{1,64}")
_KEPT = 64  # files whose rows are kept in memory
_SHOWN = 6  # reasons in a line
_MOST_REASONS = 32_767


@dataclass(frozen=True, eq=False)
class SetKind:
    """A kind of set. prefix: of its files. what: for messages. column: the values' name in the files. identity: the bytes by which a key
    and its value enter the content's hash. more: further entries of its manifest."""

    prefix: str
    what: str
    column: str
    values: pa.DataType
    identity: Callable[[str, Any], bytes]
    more: Mapping[str, Form] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("key", pa.string()), (self.column, self.values)])

    @property
    def form(self) -> Fields:
        """The form of the manifest."""
        entry = Fields({"shard": count, "file": beside, "sha256": digest, self.column: text}, may={"clips": count})
        named = matching(NAME.pattern, "a name of small letters")
        return Fields({"name": named, "dataset": text, "files": [entry], **self.more}, may={"sha256": Maybe(text)})

    def manifest(self, folder: Path | str, name: str) -> Path:
        return Path(folder) / f"{self.prefix}-{name}.json"

    def file(self, folder: Path | str, name: str, shard: int) -> Path:
        return Path(folder) / f"{self.prefix}-{name}-{shard:06d}.parquet"

    def names(self, folder: Path | str) -> list[str]:
        """The names of the finished sets of a folder, in order."""
        return sorted(path.stem.removeprefix(f"{self.prefix}-") for path in Path(folder).glob(f"{self.prefix}-*.json"))

    def described(self, folder: Path | str, name: str, *, dataset: str) -> dict[str, Any]:
        """The manifest of a finished set. Raises ValueError, with the file's name, for one that is damaged or of another dataset."""
        path, again = self.manifest(folder, name), "write it again or delete it"
        found = read_json(path, limit=LIST, within=path.parent)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise ValueError(f"{path} is no {self.what} of version {VERSION}; {again}")
        fitting(found, self.form, str(path), again)
        whole = name == found["name"]
        if not whole or found.get("sha256") not in (None, text_hash(json.dumps(found["files"]))):  # old sets have none
            raise ValueError(f"{path} is damaged: its name or its files are none; {again}")
        if found["dataset"] != dataset:
            raise ValueError(f"{path} is of another dataset ({found['dataset'][:12]}, here is {dataset[:12]}); make it anew for this one")
        return found

    def refuse_unknown(self, folder: Path | str, names: Sequence[str], key: str) -> None:
        """Raise ValueError unless the folder has finished sets of these names. key: that the user turns."""
        there = self.names(folder)
        if lacking := [name for name in names if name not in there]:
            raise ValueError(f"{key}: {folder} has no {self.what} {lacking[0]!r}; it has {', '.join(there) or 'none'}")

    def content(self, values: Mapping[str, Any]) -> str:
        """The hash of the keys and values of a file."""
        found = hashlib.sha256()
        for key, value in values.items():
            found.update(self.identity(key, value) + b"\n")
        return found.hexdigest()

    def read(self, path: Path, sha256: str) -> pa.Table:
        """The rows of a file of a finished set; ValueError if it is missing, damaged or changed."""
        if not path.is_file() or file_hash(path, most=parquet.WHOLE) != sha256:
            raise ValueError(f"{path} is missing or has changed; write the {self.what} again, or delete its {self.prefix}-*.json")
        with parquet.opened(path, within=path.parent) as file:
            table = parquet.taken(file, path).cast(self.schema)
            if any(_lacks(column.combine_chunks()) for column in table.columns):
                raise ValueError(f"{path} is damaged: a key or a value is missing; write the {self.what} again")
            return table


def _lacks(values: pa.Array) -> bool:
    """Whether a value is null, or a part of one."""
    if values.null_count:
        return True
    if isinstance(values, pa.MapArray):
        return _lacks(values.keys) or _lacks(values.items)
    if isinstance(values, pa.ListArray):
        return _lacks(values.flatten())
    return isinstance(values, pa.StructArray) and any(map(_lacks, values.flatten()))


class KeyedSets:
    """The finished sets of a kind in a dataset's folder, in the order of their names. names: of those in force (None: all of them)."""

    def __init__(self, kind: SetKind, folder: Path | str, *, dataset: str, names: Sequence[str] | None, key: str) -> None:
        self.kind, self.folder = kind, Path(folder)
        if names is None:
            names = kind.names(self.folder)
        kind.refuse_unknown(self.folder, names, key)
        self.described = [kind.described(self.folder, name, dataset=dataset) for name in sorted(set(names))]
        self._files = [{entry["shard"]: entry for entry in described["files"]} for described in self.described]
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(described["name"] for described in self.described)

    @property
    def hashes(self) -> dict[str, str]:
        """For each set, by its name, a hash of its content."""
        return {one["name"]: text_hash("\n".join(entry[self.kind.column] for entry in one["files"])) for one in self.described}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and contents of all sets; "" if there is no set."""
        listed = [f"{one['name']}\t{entry[self.kind.column]}" for one in self.described for entry in one["files"]]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest() if listed else ""

    def values(self, shard: int, key: str) -> list[Any]:
        """The values that the sets have for a clip, in the sets' order."""
        found = [self.of_file(files[shard]) for files in self._files if shard in files]
        return [values[key] for values in found if key in values]

    def files(self) -> list[dict[str, Any]]:
        return [entry for files in self._files for entry in files.values()]

    def of_file(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a file by key; a file that is missing, damaged or changed raises `ValueError`."""
        name = entry["file"]
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        table = self.kind.read(self.folder / name, entry["sha256"])
        self._kept[name] = dict(zip(table["key"].to_pylist(), table[self.kind.column].to_pylist(), strict=True))
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[name]


# ---- captions


CAPTION_SETS = SetKind("captions", "set of captions", "captions", CAPTIONS, caption_identity)


class CaptionSets(KeyedSets):
    """The sets of captions in force in a dataset's folder. names: of the sets (None: all that are there)."""

    def __init__(self, folder: Path | str, *, dataset: str, names: Sequence[str] | None = None) -> None:
        super().__init__(CAPTION_SETS, folder, dataset=dataset, names=names, key="data.sets")

    def over(self, captions: Sequence[Caption], *, key: str, shard: int) -> tuple[Caption, ...]:
        """A clip's captions after all sets have replaced some of them and added others."""
        found = {(said.kind, said.captioner, number): said for number, said in enumerate(captions)}
        for values in self.values(shard, key):
            new = [Caption(**said) for said in values]
            replaced = {(said.kind, said.captioner) for said in new}
            found = {place: said for place, said in found.items() if place[:2] not in replaced}
            found |= {(said.kind, said.captioner, len(found) + number): said for number, said in enumerate(new)}
        return tuple(found.values())


# ---- scores


def score_identity(key: str, scores: Sequence[tuple[str, float]]) -> bytes:
    """The bytes by which a clip's scores enter a fingerprint."""
    return json.dumps([key, [[name, repr(value)] for name, value in scores]]).encode()


SCORE_SETS = SetKind("scores", "set of scores", "scores", pa.map_(pa.string(), pa.float64()), score_identity)


class ScoreSets(KeyedSets):
    """The sets of scores of a dataset's folder, all in force."""

    def __init__(self, folder: Path | str, *, dataset: str) -> None:
        super().__init__(SCORE_SETS, folder, dataset=dataset, names=None, key="scores")

    def over(self, scores: Mapping[str, float], *, key: str, shard: int) -> dict[str, float]:
        """A clip's scores by name: its row's, under those of the sets, where a later set replaces a score of the same name."""
        found = dict(scores)
        for values in self.values(shard, key):
            found.update(values)
        return found


# ---- selections


def reason_identity(key: str, reason: str) -> bytes:
    """The bytes by which what is said of a clip enters the hash of a selection's file."""
    return json.dumps([key, reason]).encode()


_KEPT_CLIPS = {"clips": text, "captions": {"whole": text, "splits": Named(text)}}
SELECTIONS = SetKind("selection", "selection", "reason", pa.string(), reason_identity, more=_KEPT_CLIPS)


@dataclass(frozen=True)
class Selection:
    """A selection of a dataset's clips. clips, captions: fingerprints as of a dataset of the kept clips alone. codes: for each row of the
    dataset 0 if the clip is kept, else the place of its reason in `reasons`."""

    name: str
    clips: str
    captions: Mapping[str, Any]
    codes: Int[np.ndarray, "clips"]
    reasons: tuple[str, ...]

    @property
    def kept(self) -> Bool[np.ndarray, "clips"]:
        return self.codes == 0

    def told(self, mine: Bool[np.ndarray, "clips"]) -> str:
        """How many of some clips are kept, and how many are left out for which reason."""
        counts = np.bincount(self.codes[mine], minlength=len(self.reasons)).tolist()
        left = Counter({reason: number for reason, number in zip(self.reasons[1:], counts[1:], strict=True) if number})
        return f"selection {self.name} keeps {counts[0]:,} of {counted(sum(counts), 'clip')}" + (
            f" ({reasons_listed(left)})" if left else ""
        )


def open_selection(folder: Path, name: str, described: Mapping[str, Any], key: str = "data.selection") -> Selection:
    """Open a selection of a dataset. described: the dataset's dataset.json. key: that the user turns, for messages.

    Raises ValueError if there is none of this name, if it is of another dataset, or if a file is missing, damaged or changed.
    """
    SELECTIONS.refuse_unknown(folder, [name], key)
    said = SELECTIONS.described(folder, name, dataset=described["fingerprint"])
    path, shards = SELECTIONS.manifest(folder, name), described["shards"]
    if [entry["shard"] for entry in said["files"]] != list(range(len(shards))):
        raise ValueError(f"{path} is damaged: its files are not of each shard of the dataset, in order; write it again or delete it")
    if not set(said["captions"]["splits"]) <= set(described["splits"]):
        raise ValueError(f"{path} is damaged: its splits are not those of the dataset; write it again or delete it")
    found, parts = {"": 0}, []
    for entry, shard in zip(said["files"], shards, strict=True):
        table = SELECTIONS.read(folder / entry["file"], entry["sha256"])
        if table.num_rows != shard["clips"]:
            raise ValueError(
                f"{folder / entry['file']} has {table.num_rows} rows, its shard {counted(shard['clips'], 'clip')}; write it again"
            )
        coded = table["reason"].combine_chunks().dictionary_encode()
        numbers = [found.setdefault(reason, len(found)) for reason in coded.dictionary.to_pylist()]
        if len(found) > _MOST_REASONS:
            raise ValueError(f"{path} has more than {_MOST_REASONS:,} different reasons; a reason is the name of a rule")
        parts.append(np.asarray(numbers, np.int16)[coded.indices.to_numpy()])
    return Selection(name, said["clips"], said["captions"], np.concatenate(parts), tuple(found))


def reasons_listed(left: Mapping[str, int]) -> str:
    """The numbers of clips by reason as a text, the most frequent first."""
    ranked = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{counted(len(ranked) - _SHOWN, 'more reason')}"] if len(ranked) > _SHOWN else []
    return ", ".join([*(f"{number:,} {reason[:60]}" for reason, number in ranked[:_SHOWN]), *more]) or "there are none"
