"""The index of a dataset: one row per clip, as one parquet file per shard, and `dataset.json` that says the dataset is whole.

    dataset.json          version, fingerprint, totals, licence, the shards with their sizes; written last
    video-000000.tar      {key}.mp4 and {key}.json of each clip
    meta-000000.parquet   one row per clip of that shard: where it lies, its shape, its captions, its split
    columns/              numbers of all clips, mapped into memory (see `sora.data.index.columns`)
    remote.json           only where the shards lie elsewhere: their folder or URL (see `sora.data.shards.stores`)

Captions live in the parquet files alone, so that recaptioning rewrites no shard. New captions, scores and selections are sets of files of
their own (`sora.data.index.keyed_sets`). A row's parquet file is opened only when the columns do not have the answer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sora.data.index.columns import LAYOUT, SOURCES, Columns, Keys, columns_of, open_columns
from sora.data.index.keyed_sets import CAPTION_SETS, CaptionSets, ScoreSets, Selection, open_selection
from sora.data.index.rows import SCHEMA, Caption, ClipFacts, ClipRow, RowFiles, caption_identity, clip_row_of
from sora.data.index.unfinished import no_dataset
from sora.data.index.writer import DATASET, VERSION, DatasetWriter
from sora.data.shards.shards import Member, ShardReader
from sora.data.shards.stores import open_store
from sora.gate.files import refuse_outside
from sora.gate.forms import Fields, Form, Maybe, Named, count, digest, fitting, inside, some, text, whole
from sora.gate.texts import LIST, read_json
from sora.system.terminal import counted

__all__ = ["DATASET", "VERSION", "Caption", "ClipFacts", "ClipRow", "DatasetWriter", "Index", "open_indexes", "sets_of"]

_TOTALS: dict[str, Form] = dict.fromkeys(("clips", "frames", "bytes", "captions"), count)
_ENTRY = {"shard": inside, "meta": inside, "meta_sha256": digest, "clips": some, "bytes": Maybe(count)}
_CAPTIONS = {"whole": text, "splits": Named(text)}  # version 2 and later
_CAPTIONED = Named({"clips": some, "without": count, "kinds": Named(some)})  # missing in datasets of earlier versions
_COLUMNS = {"splits": [text], "suffixes": [text], "sha256": dict.fromkeys(LAYOUT, digest)}  # hashes of columns may be missing
FORM = Fields(
    {"version": whole(1, VERSION), "fingerprint": text, "totals": _TOTALS, "splits": Named(some), "shards": [_ENTRY]},
    may={"captions": Maybe(_CAPTIONS), "columns": Maybe(_COLUMNS), "captioned": Maybe(_CAPTIONED), "licence": text},
)  # the form of dataset.json
_CHECKED_AT_ONCE = 32 << 20  # bytes of metadata up to which opening compares every file's hash


class Index:
    """The clips of a dataset (or of one split of it), in the order in which they were written.

    Columns are arrays in memory shared by the machine's processes, not Python objects, so that a hundred million clips open at once and
    forked workers share them. `fingerprint` covers keys, bytes, shapes and the split; `dataset_fingerprint` covers the same for all splits.
    Neither depends on captions or on how the clips are spread over shards; `captions_fingerprint` covers the captions. With a selection the
    index has the kept clips alone, and both fingerprints are those of a dataset of these clips alone; `dataset_fingerprint` is not.
    """

    def __init__(
        self,
        folder: Path,
        split: str | None,
        described: Mapping[str, Any],
        files: RowFiles,
        columns: Columns,
        *,
        hash_every_read: bool,
        sets: CaptionSets,
        selection: Selection | None,
    ) -> None:
        self.folder, self.split, self.described, self.hash_every_read = folder, split, described, hash_every_read
        self.files, self.columns, self.sets, self.selection = files, columns, sets, selection
        self._rows = _rows_of(columns, split, described, selection)
        self._reader = ShardReader(open_store(folder), members=None if hash_every_read else len(columns))

    @classmethod
    def open(
        cls,
        folder: Path | str,
        split: str | None = None,
        *,
        hash_every_read: bool = False,
        sets: Sequence[str] | None = None,
        selection: str | None = None,
    ) -> Index:
        """Open the index of a folder that `sora prepare` or `sora data index` finished.

        hash_every_read: compare a clip's bytes with its hash at every read, not only at a process's first read of it (see `ShardReader`).
        sets: names of the sets of captions in force (None: all that are there). selection: name of the selection that keeps clips (None:
        all are kept).

        A missing, cut or changed file raises `ValueError` with its name: at once up to 32 MB of metadata, above that at its first use.
        """
        folder = Path(folder)
        if not (folder / DATASET).is_file():
            raise ValueError(no_dataset(folder))
        described = describe(folder)
        files = RowFiles(folder, described["shards"])
        _check_files(folder, described, files)
        columns = open_columns(folder, described, described["totals"]["clips"])
        if columns is None:
            columns = columns_of(files.whole(number, SOURCES) for number in range(len(files.entries)))
        if split is not None and split not in described["splits"]:
            raise ValueError(f"{folder} has no clips of split {split!r}; it has {described['splits']}")
        captions = CaptionSets(folder, dataset=described["fingerprint"], names=sets)
        kept = None if selection is None else open_selection(folder, selection, described)
        return cls(folder, split, described, files, columns, hash_every_read=hash_every_read, sets=captions, selection=kept)

    def __len__(self) -> int:
        return len(self.columns) if self._rows is None else len(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        chosen = None if self.selection is None else self.selection.name
        return _opened, (self.folder, self.split, self.hash_every_read, self.sets.names, chosen)  # a set that is added later changes none

    @cached_property
    def frames(self) -> Int[np.ndarray, "rows"]:
        return self._array("frames")

    @cached_property
    def heights(self) -> Int[np.ndarray, "rows"]:
        return self._array("height")

    @cached_property
    def widths(self) -> Int[np.ndarray, "rows"]:
        return self._array("width")

    @cached_property
    def fps(self) -> Float[np.ndarray, "rows"]:
        return self._array("fps")

    @cached_property
    def sizes(self) -> Int[np.ndarray, "rows"]:
        """The size of each clip in bytes."""
        return self._array("size")

    @property
    def selected(self) -> list[str]:
        """A line on how many clips of this split the selection keeps, and why it leaves out others; none without a selection."""
        if self.selection is None:
            return []
        codes = self.columns.arrays["split"]
        mine = np.ones(len(codes), np.bool_) if self.split is None else codes == self.columns.splits.index(self.split)
        return [self.selection.told(mine)]

    def of_rows(self, whole: np.ndarray) -> np.ndarray:
        """The entries of this split, from an array with one entry for every clip of the dataset."""
        return whole if self._rows is None else whole[self._rows]

    def _array(self, name: str) -> np.ndarray:
        return self.of_rows(self.columns.arrays[name])

    @property
    def dataset_fingerprint(self) -> str:
        return self.described["fingerprint"]

    @cached_property
    def fingerprint(self) -> str:
        clips = self.dataset_fingerprint if self.selection is None else self.selection.clips
        return hashlib.sha256(f"{clips}\t{self.split}".encode()).hexdigest()

    @cached_property
    def captions_fingerprint(self) -> str:
        written = self.described.get("captions") if self.selection is None else self.selection.captions
        if written is None:  # datasets of version 1
            found = (caption_identity(self.key(row), self._values(row, ("captions",))["captions"]) for row in range(len(self)))
            base = hashlib.sha256(b"\n".join(found)).hexdigest()
        else:
            base = written["whole"] if self.split is None else written["splits"][self.split]
        return hashlib.sha256(f"{base}\t{self.sets.fingerprint}".encode()).hexdigest() if self.sets.fingerprint else base

    @property
    def captioned(self) -> dict[str, Any] | None:
        """How many clips have captions of which kinds, as dataset.json says: {"clips", "without", "kinds": {kind: clips}}.

        None if dataset.json does not say it (earlier versions), if sets of captions were added since, or with a selection.
        """
        written = self.described.get("captioned")
        if not written or self.sets.described or self.selection is not None:
            return None
        mine = [counts for split, counts in written.items() if self.split in (None, split)]
        kinds = {kind: sum(counts["kinds"].get(kind, 0) for counts in mine) for counts in mine for kind in counts["kinds"]}
        return {"clips": len(self), "without": sum(counts["without"] for counts in mine), "kinds": kinds}

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.columns, self._rows)

    def key(self, number: int) -> str:
        return self.columns.key(self.place(number))

    def shard(self, number: int) -> int:
        """The number of the shard that holds a clip, in the order of `described["shards"]`."""
        return self.files.locate(self.place(number))[0]

    def rows_of_shard(self, shard: int) -> Sequence[int]:
        """The rows of this split whose clips a shard holds."""
        first, last = (int(self.files.starts[number]) for number in (shard, shard + 1))
        if self._rows is None:
            return range(first, last)
        return range(*np.searchsorted(self._rows, (first, last)).tolist())

    def shard_keys(self, shard: int) -> list[str]:
        """The keys of all clips of a shard, in any split."""
        first, last = (int(self.files.starts[number]) for number in (shard, shard + 1))
        return [self.columns.key(row) for row in range(first, last)]

    def row(self, number: int) -> ClipRow:
        """All metadata of a clip as they were first written, without the captions of later sets."""
        return clip_row_of(self._values(number, tuple(SCHEMA.names)))

    def member(self, number: int) -> Member:
        """The place of a clip's bytes; cheaper than its whole row."""
        place, columns = self.place(number), self.columns
        entry = self.described["shards"][self.files.locate(place)[0]]
        offset, size = int(columns.arrays["offset"][place]), int(columns.arrays["size"][place])
        return Member(columns.key(place), columns.suffix(place), entry["shard"], offset, size, columns.sha256(place), place)

    def captions(self, number: int) -> tuple[Caption, ...]:
        said = tuple(Caption(**caption) for caption in self._values(number, ("captions",))["captions"])
        return self.sets.over(said, key=self.key(number), shard=self.shard(number)) if self.sets.described else said

    @cached_property
    def score_sets(self) -> ScoreSets:
        """The dataset's sets of scores."""
        return ScoreSets(self.folder, dataset=self.dataset_fingerprint)

    def scores(self, number: int) -> dict[str, float]:
        """A clip's scores by name: its row's, and over them those of the sets of scores."""
        said = dict(self._values(number, ("scores",))["scores"] or ())
        return self.score_sets.over(said, key=self.key(number), shard=self.shard(number))

    def read_member(self, row: ClipRow | Member | int) -> bytes:
        """The bytes of a clip; a shard that is cut short or changed raises `ValueError` with the shard and the key."""
        if isinstance(row, ClipRow):
            return self._reader.read(row.member)  # without a row number the bytes are always hashed
        return self._reader.read(row if isinstance(row, Member) else self.member(row))

    def place(self, number: int) -> int:
        """The number that a row of this split has among the rows of the whole dataset."""
        return range(len(self.columns))[number] if self._rows is None else int(self._rows[number])

    def _values(self, number: int, columns: tuple[str, ...]) -> dict[str, Any]:
        return self.files.values(self.place(number), columns)


def refuse_no_folders(folders: Sequence[str]) -> None:
    """Raise ValueError if `data.folders` is empty or lists one dataset twice, in whatever spelling of its path."""
    if isinstance(folders, str) or not folders:
        raise ValueError(f"data.folders={folders!r}; list one folder or more, such as data.folders=[data/world]")
    places = [os.path.realpath(folder) for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            first = folders[places.index(place)]
            raise ValueError(
                f"data.folders: {folders[number]} is the dataset {first} again, whose clips would be shown twice as often unsaid; leave it "
                "out, and set how often with data.weights"
            )


def open_indexes(
    folders: Sequence[str],
    split: str,
    *,
    sets: Sequence[str | Sequence[str]] | None = None,
    selection: str | Sequence[str | None] | None = None,
    hash_every_read: bool = False,
) -> tuple[Index, ...]:
    """Open the datasets that a run names. Raises ValueError for a set or a selection that is not there, and names those that are.

    sets: names of the sets of captions in force. Of one list for all datasets, each uses the sets that it has, and each name is of one
    dataset at least; with one list for each dataset, each has all of its list. None: all sets that are there. selection: one name for all
    datasets, or one for each (None: all clips of that one).
    """
    refuse_no_folders(folders)
    named, kept = sets_of(folders, sets), _selections(folders, selection)
    return tuple(
        Index.open(folder, split, hash_every_read=hash_every_read, sets=mine, selection=chosen)
        for folder, mine, chosen in zip(folders, named, kept, strict=True)
    )


def sets_of(folders: Sequence[str], sets: Sequence[str | Sequence[str]] | None) -> list[Sequence[str] | None]:
    """The names of each dataset's sets of captions; None for all that are there."""
    if sets is None:
        return [None] * len(folders)
    if isinstance(sets, str):
        raise ValueError(f"data.sets={sets} is a list of names: data.sets=[{sets}]; [] is none of them, null all that are there")
    lists = [list(entry) for entry in sets if not isinstance(entry, str)]
    if lists:
        if not len(lists) == len(sets) == len(folders):
            raise ValueError(f"data.sets={list(sets)}: give one list of names, or one list for each of the {len(folders)} data.folders")
        return list(lists)
    names = [entry for entry in sets if isinstance(entry, str)]
    there = [CAPTION_SETS.names(folder) for folder in folders]
    for name in names:
        if not any(name in each for each in there):
            known = ", ".join(sorted({other for each in there for other in each})) or "none"
            raise ValueError(f"data.sets: no dataset of data.folders has a set of captions {name!r}; they have {known}")
    return [[name for name in names if name in each] for each in there]


def _selections(folders: Sequence[str], selection: str | Sequence[str | None] | None) -> list[str | None]:
    if selection is None or isinstance(selection, str):
        return [selection] * len(folders)
    if len(selection) != len(folders):
        raise ValueError(f"data.selection={list(selection)}: give one name for all, or one for each of the {len(folders)} data.folders")
    return list(selection)


def _opened(folder: Path, split: str | None, hash_every_read: bool, sets: Sequence[str], selection: str | None) -> Index:
    return Index.open(folder, split, hash_every_read=hash_every_read, sets=sets, selection=selection)


def _rows_of(columns: Columns, split: str | None, described: Mapping[str, Any], selection: Selection | None) -> np.ndarray | None:
    """The rows of a split that a selection keeps; None if that is the whole dataset."""
    rows = None if split is None or columns.splits == (split,) else _rows_of_split(columns, split, described)
    if selection is None or selection.kept.all():
        return rows
    kept = np.flatnonzero(selection.kept) if rows is None else rows[selection.kept[rows]]
    if not len(kept):
        mine = np.ones(len(columns), np.bool_) if split is None else columns.arrays["split"] == columns.splits.index(split)
        raise ValueError(f"split {split}: {selection.told(mine)}; choose another data.selection, or another split")
    return kept.astype(np.int32) if len(columns) < 2**31 else kept


def _rows_of_split(columns: Columns, split: str, described: Mapping[str, Any]) -> np.ndarray:
    rows = np.flatnonzero(columns.arrays["split"] == columns.splits.index(split))
    if len(rows) != described["splits"][split]:
        raise ValueError(
            f"the columns are damaged: {counted(len(rows), 'clip is', 'clips are')} of split {split}, not {described['splits'][split]}; "
            "delete their folder"
        )
    return rows.astype(np.int32) if len(columns) < 2**31 else rows


def describe(folder: Path) -> dict[str, Any]:
    """The content of a folder's dataset.json; ValueError if its form is wrong or its parts contradict each other."""
    path = folder / DATASET
    described = read_json(path, limit=LIST, within=folder)
    version = described.get("version") if isinstance(described, dict) else None
    if type(version) is int and version > VERSION:
        raise ValueError(f"{path} has version {version}, this program reads {VERSION}; prepare it again or update sora")
    fitting(described, FORM, str(path), "prepare or index the dataset again")
    if version == VERSION and described.get("captions") is None:
        raise ValueError(f"{path} is damaged: captions is missing; prepare or index the dataset again")
    clips = described["totals"]["clips"]
    fits_together = clips == sum(entry["clips"] for entry in described["shards"]) == sum(described["splits"].values())
    found = [described[name]["splits"] for name in ("columns", "captions") if described.get(name)]
    found += [described["captioned"]] if described.get("captioned") else []
    if not fits_together or not all(set(splits) == set(described["splits"]) for splits in found):
        raise ValueError(f"{path} is damaged: its shards, splits and totals do not fit together; prepare or index the dataset again")
    return described


def _check_files(folder: Path, described: Mapping[str, Any], files: RowFiles) -> None:
    """Raise ValueError unless every file in dataset.json exists and every shard has its size."""
    store = open_store(folder)
    metas = [folder / entry["meta"] for entry in described["shards"]]
    for number, (entry, meta) in enumerate(zip(described["shards"], metas, strict=True)):
        refuse_outside(meta, folder)
        if not meta.is_file():
            raise ValueError(f"{meta} is missing, {folder / DATASET} lists it; prepare or index the dataset again")
        size = store.known_size(entry["shard"])
        if size is None and not store.remote:
            raise ValueError(f"{store.place(entry['shard'])} is missing, {folder / DATASET} lists it; prepare or fetch it again")
        if size is not None and entry["bytes"] is not None and size != entry["bytes"]:
            raise _cut(store.place(entry["shard"]), size, entry, files, number)
    if sum(meta.stat().st_size for meta in metas) <= _CHECKED_AT_ONCE:
        for number in range(len(metas)):
            files.check(number)


def _cut(shard: str, size: int, entry: Mapping[str, Any], files: RowFiles, number: int) -> ValueError:
    table = files.whole(number, ("key", "offset", "size"))
    ends = (table["offset"].to_numpy() + table["size"].to_numpy()) > size
    lost = table["key"].to_numpy(zero_copy_only=False)[ends]
    first = f"; the first clip that is cut is {lost[0]}, {len(lost)} are lost" if len(lost) else ""
    return ValueError(f"{shard} has {size} bytes instead of {entry['bytes']}{first}; prepare or fetch the shard again")
