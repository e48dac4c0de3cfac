"""Writes sets of captions and of scores, and selections (`sora.data.index.keyed_sets`): a file for each shard, and the manifest at the end.

The files of an unfinished set may be written by several jobs, and by one job after another that was killed: each file says in its schema
which dataset and which settings it is of. Files of the same ones are taken over; others are refused, so that nothing is mixed unsaid.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sora.data.index.index import Index
from sora.data.index.keyed_sets import CAPTION_SETS, NAME, SCORE_SETS, SELECTIONS, VERSION, SetKind, reasons_listed
from sora.data.index.rows import Caption
from sora.data.index.writer import Fingerprints
from sora.gate import parquet
from sora.gate.forms import fitting, text
from sora.gate.texts import CARD, json_of
from sora.system.files import file_hash, local, text_hash, whole_file, write_json

_ABOUT = b"sora.set"  # in the schema of a file: the dataset, the hash of the settings, the hash of the content
_ABOUT_FORM = {"dataset": text, "settings": text, "content": text}


class SetFiles:
    """The files of a set that is being written: one for each shard, each written whole or not at all, by this or another process.

    dataset: the dataset's fingerprint. settings: what the content depends on. The files of an unfinished set of the same name are taken
    over if they are of the same dataset and settings; others are refused, and so is a finished set.
    """

    def __init__(self, kind: SetKind, folder: Path | str, name: str, *, dataset: str, settings: Mapping[str, Any]) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a {kind.what}; use lower case letters, digits and '_'")
        self.kind, self.folder, self.name, self.dataset = kind, Path(folder), name, dataset
        self.settings = json.loads(json.dumps(dict(settings), allow_nan=False))
        self._settings = text_hash(json.dumps(self.settings, sort_keys=True))
        if kind.manifest(self.folder, name).exists():
            raise ValueError(f"{kind.manifest(self.folder, name)} exists already; give the set another name, or delete it")
        self.entries()

    def write(self, shard: int, values: Mapping[str, Any]) -> None:
        """Write the values of clips of a shard, by the clips' keys; a second call for the same shard replaces the first."""
        about = {"dataset": self.dataset, "settings": self._settings, "content": self.kind.content(values)}
        schema = self.kind.schema.with_metadata({_ABOUT: json.dumps(about).encode()})
        columns = {"key": list(values), self.kind.column: list(values.values())}
        with whole_file(self.kind.file(self.folder, self.name, shard)) as staging:
            pq.write_table(pa.table(columns, schema=schema), local(staging), compression="zstd")

    def entries(self) -> dict[int, dict[str, Any]]:
        """The entries of the manifest for the files that are there, without their hashes, by shard.

        Raises ValueError for a file that is damaged, or belongs to an unfinished set of other settings or of another dataset.
        """
        found = {}
        for path in sorted(self.folder.glob(f"{self.kind.prefix}-{self.name}-*.parquet")):
            number = path.stem.rpartition("-")[2]
            if not number.isdecimal() or path != self.kind.file(self.folder, self.name, int(number)):
                continue
            with parquet.opened(path, within=self.folder) as file:
                clips, about = file.metadata.num_rows, (file.schema_arrow.metadata or {}).get(_ABOUT, b"null")
            try:
                said = fitting(json_of(about, limit=CARD), _ABOUT_FORM, str(path))
            except ValueError:
                said = dict.fromkeys(_ABOUT_FORM, "")
            if (said["dataset"], said["settings"]) != (self.dataset, self._settings):
                of = "of other settings" if said["dataset"] == self.dataset else "of another dataset, or of an older version"
                pattern = f"{self.kind.prefix}-{self.name}-*.parquet"
                raise ValueError(f"{path} belongs to an unfinished {self.kind.what} {of}; give this one another name, or delete {pattern}")
            found[int(number)] = {"shard": int(number), "file": path.name, "clips": clips, self.kind.column: said["content"]}
        return found

    def finish(self, about: Mapping[str, Any], **more: Any) -> Path:
        """Write the manifest, which puts the set in force. about: JSON-able facts. more: further entries of the manifest."""
        files = list(self.entries().values())
        if not files:
            raise ValueError(f"no file was written of the {self.kind.what} {self.name}; there is nothing to add")
        for entry in files:
            entry["sha256"] = file_hash(self.folder / entry["file"])
        described = {"version": VERSION, "name": self.name, "dataset": self.dataset, "files": files, **more}
        described |= {"sha256": text_hash(json.dumps(files)), "settings": self.settings, "about": dict(about)}
        path = self.kind.manifest(self.folder, self.name)
        write_json(path, described)
        return path


class CaptionSetWriter:
    """Writes the set `name` of captions into a dataset's folder: one file for each shard that has new captions, then `finish`.

    dataset: the dataset's fingerprint. settings: what the captions depend on, such as the captioner and its prompt. The captions are in
    force only after `finish`. A set that exists already is refused. The files of an unfinished set are taken over if they were written
    with the same dataset and settings, else they are refused: so a killed job goes on, and several jobs write shards of one set.
    """

    def __init__(self, folder: Path | str, name: str, *, dataset: str, settings: Mapping[str, Any] | None = None) -> None:
        self._files = SetFiles(CAPTION_SETS, folder, name, dataset=dataset, settings=settings or {})
        self.folder, self.name, self.dataset = self._files.folder, name, dataset

    def written(self) -> Collection[int]:
        """The shards whose files are there by now, whoever wrote them."""
        return self._files.entries().keys()

    def write(self, shard: int, captions: Mapping[str, Sequence[Caption]]) -> None:
        """Write new captions of clips of a shard, by the clips' keys, or of none; a second call for the same shard replaces the first."""
        self._files.write(shard, {key: [asdict(caption) for caption in said] for key, said in captions.items()})

    def finish(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest that puts in force all files that are there. about: JSON-able facts, such as who wrote the captions."""
        return self._files.finish(about)


class ScoreSetWriter:
    """Writes the set `name` of scores into a dataset's folder: one file for each shard, then `finish`.

    dataset: the dataset's fingerprint. settings: what the scores depend on, such as a scorer and the hash of its weights. Unfinished sets
    are reopened as by `CaptionSetWriter`.
    """

    def __init__(self, folder: Path | str, name: str, *, dataset: str, settings: Mapping[str, Any] | None = None) -> None:
        self._files = SetFiles(SCORE_SETS, folder, name, dataset=dataset, settings=settings or {})
        self.folder, self.name, self.dataset = self._files.folder, name, dataset

    def written(self) -> Collection[int]:
        """The shards whose files are there by now, whoever wrote them."""
        return self._files.entries().keys()

    def write(self, shard: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write the scores of clips of a shard: by the clips' keys, numbers by name. A score that could not be computed is left out of the
        names; one that is no finite number raises ValueError."""
        for key, found in scores.items():
            if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
                raise ValueError(f"clip {key}: its score {wrong[0]} is {found[wrong[0]]}, and a score is a finite number; leave it out")
        self._files.write(shard, {key: sorted((name, float(value)) for name, value in found.items()) for key, found in scores.items()})

    def finish(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest that puts in force all files that are there. about: JSON-able facts."""
        return self._files.finish(about)


class SelectionWriter:
    """Writes the selection `name` of a dataset's clips: one file for every shard, then `finish`. index: of the whole dataset.

    settings: what the choice depends on, such as its rules. Unfinished selections are reopened as by `CaptionSetWriter`.
    """

    def __init__(self, index: Index, name: str, *, settings: Mapping[str, Any] | None = None) -> None:
        if index.split is not None or index.selection is not None:
            raise ValueError(f"a selection is of all clips of {index.folder}; open the index without a split and without a selection")
        self._files = SetFiles(SELECTIONS, index.folder, name, dataset=index.dataset_fingerprint, settings=settings or {})
        self.index, self.name = index, name

    def written(self) -> Collection[int]:
        """The shards whose files are there by now, whoever wrote them."""
        return self._files.entries().keys()

    def write(self, shard: int, reasons: Mapping[str, str]) -> None:
        """Write for every clip of a shard, by its key, the reason why it is left out, "" if it is kept."""
        keys = self.index.shard_keys(shard)
        if set(reasons) != set(keys):
            odd = sorted(set(reasons) ^ set(keys))[0]
            why = "is not a clip of it" if odd in reasons else "is neither kept nor has a reason"
            raise ValueError(f"selection {self.name}, shard {shard} of {self.index.folder}: {odd} {why}")
        self._files.write(shard, {key: reasons[key] for key in keys})

    def finish(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest that puts the selection in force. Raises ValueError if a shard lacks its file, or no clip is kept."""
        entries, prints, left = self._files.entries(), Fingerprints(), Counter[str]()
        for number in range(len(self.index.described["shards"])):
            if number not in entries:
                raise ValueError(f"selection {self.name}: nothing is written of shard {number} of {self.index.folder}")
            path = self._files.folder / entries[number]["file"]
            reasons = parquet.read(path, within=path.parent)["reason"]
            left.update(reasons.to_pylist())
            prints.add(self.index.files.whole(number).filter(pc.equal(reasons, "")))
        if not left.pop("", 0):
            raise ValueError(
                f"selection {self.name} would keep no clip of {self.index.folder} ({reasons_listed(left)}); choose other rules"
            )
        return self._files.finish(about, clips=prints.clips, captions=prints.captions())
