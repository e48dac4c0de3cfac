"""`sora data check`: compares a dataset with its index, from the counts down to every byte and frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from sora.data.index.columns import FOLDER, LAYOUT, ColumnCheck, check_columns
from sora.data.index.index import Index
from sora.data.index.latents import LatentIndex
from sora.data.index.unique_keys import KeyFile
from sora.data.index.writer import DATASET, CaptionCounts, Fingerprints
from sora.data.loading.caption_checks import captioned
from sora.data.shards.shards import Member
from sora.data.shards.stores import Store, open_store
from sora.data.shards.tar_reader import TarWalk, sample_of
from sora.gate.forms import fitting, text
from sora.gate.texts import LIST, read_json
from sora.ingest.check_sets import check_sets
from sora.system.guarded_pool import in_order
from sora.system.terminal import counted
from sora.text.cache import cut_in
from sora.video.files import probe_apart as probe
from sora.video.files import read_apart as read

_UNIT = 16  # clips that a process reads before it answers
_SOUGHT = 4  # frames that are read a second time, from the middle of a clip
_MOST_FAULTS = 100_000  # faults that are listed


class ClipNote(NamedTuple):
    """A remark about a clip that is no fault, such as "interlaced" or a part that it lacks."""

    where: str
    what: str


class Decoded(NamedTuple):
    """A clip whose frames were read."""

    row: int


class Fault(NamedTuple):
    """A difference between the dataset and its index. where: a file, or `shard: key`."""

    kind: str
    where: str
    reason: str


@dataclass
class Checked:
    """The result of a check. counts: numbers of compared things, by name. faults: the first 100,000. kinds: numbers of faults by kind.

    notes: remarks that are no faults and worth knowing before a run.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, where: str, reason: str) -> None:
        self.kinds[kind] += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(Fault(kind, where, reason))

    def lines(self, most: int = 20) -> list[str]:
        """Lines for people: the counts, and the first faults."""
        # of each name the first noun is in the plural: "parquet files", "videos without a row"
        one = {name: re.sub(r"(\w)s\b", r"\1", name, count=1) for name in self.counts}
        compared = ", ".join(counted(count, one[name], name) for name, count in self.counts.items()) or "nothing could be compared"
        notes = [f"  note: {note}" for note in self.notes]
        if not self.faults:
            return [f"{compared}: all as the index says", *notes]
        kinds, found = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common()), self.kinds.total()
        shown = [f"  {fault.where}: {fault.reason}" for fault in self.faults[:most]]
        more = [f"  … and {found - most} more"] if found > most else []
        return [f"{compared}: {counted(found, 'fault')} ({kinds})", *shown, *more, *notes]


def check(
    index: Index,
    *,
    decode: float,
    workers: int,
    seconds: float,
    memory_gb: float,
    report: Callable[[int], None] = lambda clips: None,
) -> Checked:
    """Compare a whole dataset with its index. decode: share of the clips, evenly spread, whose every frame is decoded.

    What `Index.open` refuses raises ValueError here too; all else is a fault in the result. report: called with the number of clips done.
    """
    if not 0 <= decode <= 1:
        raise ValueError(f"decode={decode} is no share of the clips; give 0 to 1")
    checked = Checked()
    if not _metadata(index, checked):
        return checked
    store = open_store(index.folder)
    for number, entry in enumerate(index.described["shards"]):
        _shard(index, store, number, entry, checked)
    run = partial(in_order, workers=workers, seconds=seconds, memory_gb=memory_gb, apart=not store.remote)
    _clips(index, checked, decode=decode, run=run, report=report)
    _captions(index, checked)
    check_sets(index, checked)
    _latents(index, checked)
    return checked


def _metadata(index: Index, checked: Checked) -> bool:
    """Check every parquet file and column against its hash, and the totals and fingerprints against the rows, one shard at a time.

    Return False if the clips cannot be found with these metadata.
    """
    described, prints, captioned = index.described, Fingerprints(), CaptionCounts()
    totals: Counter[str] = Counter()
    mapped = "columns" in described and (index.folder / FOLDER).is_dir()  # else opening made them from the rows, see `open_columns`
    if mapped:
        check_columns(index.folder, described)
    compare = ColumnCheck(index.columns)
    with closing(KeyFile()) as keys:
        for number, entry in enumerate(described["shards"]):
            try:
                table = index.files.whole(number)
            except ValueError as error:
                checked.add("metadata", entry["meta"], str(error))
                return False
            prints.add(table)
            captioned.add(table)
            compare(table)
            keys.add(table["key"].to_pylist())
            totals.update(clips=table.num_rows, **{name: sum(table[name].to_pylist()) for name in ("frames", "size")})
            totals["captions"] += sum(pc.list_value_length(table["captions"]).to_pylist())
            _lies_in(entry, table, checked)
        twice = keys.repeated()
    totals["bytes"] = totals.pop("size")
    checked.counts["parquet files"] = len(described["shards"])
    for name, value in totals.items():
        if described["totals"][name] != value:
            checked.add("count", DATASET, f"it says {described['totals'][name]} {name}, the rows make {value}")
    if prints.clips != described["fingerprint"]:
        checked.add("fingerprint", DATASET, "its fingerprint is not that of the rows")
    if "captions" in described and prints.captions() != described["captions"]:
        checked.add("fingerprint", DATASET, "its fingerprints of the captions are not those of the rows")
    if described.get("captioned") not in (None, captioned.described()):
        checked.add("count", DATASET, "its numbers of clips with and without captions are not those of the rows")
    if len(twice):
        checked.add(
            "duplicate",
            DATASET,
            f"{counted(len(twice), 'key comes', 'keys come')} more than once, such as {index.columns.key(int(twice[0]))}",
        )
    if mapped:
        for name in sorted(compare.wrong):
            checked.add("column", f"{FOLDER}/{name}.bin", "does not say what the rows say; delete the folder")
        checked.counts["columns"] = len(LAYOUT)
    return not compare.wrong


def _lies_in(entry: dict[str, Any], table: pa.Table, checked: Checked) -> None:
    """Check that all rows of a file belong to the shard that dataset.json names."""
    others = sorted(set(table["shard"].to_pylist()) - {entry["shard"]})
    if others:
        checked.add("metadata", entry["meta"], f"it has rows of {others[0]}, dataset.json says it is of {entry['shard']}")


def _shard(index: Index, store: Store, number: int, entry: dict[str, Any], checked: Checked) -> None:
    """Check the tar against the rows: every clip lies where its row says, and no video lies in the tar without a row."""
    table = index.files.whole(number, ("key", "suffix", "offset", "size"))
    wanted = {place[2:]: place[:2] for place in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)}
    suffixes = set(table["suffix"].to_pylist())
    try:
        file, size = store.open(entry["shard"])
        with closing(file):
            walk = TarWalk(file, size=size)
            found = {(offset, length): name for name, offset, length in walk}
    except ValueError as error:
        checked.add("shard", entry["shard"], str(error))
        return
    checked.counts["shards"] += 1
    if entry["bytes"] is not None and size != entry["bytes"]:
        checked.add("shard", entry["shard"], f"it has {size} bytes instead of {entry['bytes']}")
    for trouble in walk.troubles:
        checked.add(trouble.kind, f"{entry['shard']}: {trouble.place}", trouble.reason)
    for place, (key, suffix) in wanted.items():
        if place not in found:
            checked.add("offset", f"{entry['shard']}: {key}", f"no member {suffix} of {place[1]} bytes lies at {place[0]}")
    strangers = [name for place, name in found.items() if place not in wanted and (sample_of(name) or ("", ""))[1] in suffixes]
    checked.counts["videos without a row"] += len(strangers)


def _clips(index: Index, checked: Checked, *, decode: float, run: Callable[..., Iterator], report: Callable[[int], None]) -> None:
    units = (range(first, min(first + _UNIT, len(index))) for first in range(0, len(index), _UNIT))
    compare = _Compare(index, decode)
    checked.counts["clips"] = checked.counts["clips decoded"] = 0
    noted: Counter[str] = Counter()
    first: dict[str, str] = {}
    for unit in run(compare, units):
        # If the process died, one of these clips was the cause: read them again one by one.
        several = unit.result is None and len(unit.item) > 1
        for done in run(compare, (range(row, row + 1) for row in unit.item)) if several else [unit]:
            member = index.member(done.item[0])
            died = [Fault("decode", f"{member.shard}: {member.key}", done.reason)]
            for found in died if done.result is None else done.result:
                match found:
                    case Fault():
                        checked.add(*found)
                    case Decoded():
                        checked.counts["clips decoded"] += 1
                    case ClipNote():
                        noted[found.what] += 1
                        first.setdefault(found.what, found.where)
        report(len(unit.item))
        checked.counts["clips"] += len(unit.item)
    checked.notes += [f"{what}: {count} of the clips that were decoded, the first {first[what]}" for what, count in noted.most_common()]


class _Compare:
    """Reads clips and compares their bytes, and the frames of some, with their rows."""

    def __init__(self, index: Index, decode: float) -> None:
        self.index, self.decode = index, decode

    def __reduce__(self) -> tuple[Any, ...]:
        return _compare, (self.index.folder, self.decode)

    def decoded(self, row: int) -> bool:
        return int((row + 1) * self.decode) > int(row * self.decode)

    def __call__(self, rows: Sequence[int]) -> list[Fault | ClipNote | Decoded]:
        return [fault for row in rows for fault in self._clip(row)]

    def _clip(self, row: int) -> Sequence[Fault | ClipNote | Decoded]:
        index, member = self.index, self.index.member(row)
        where = f"{member.shard}: {member.key}"
        try:
            media = index.read_member(member)
        except ValueError as error:
            return [Fault("bytes", where, str(error))]
        return self._frames(row, member, media, where) if self.decoded(row) else []

    def _frames(self, row: int, member: Member, media: bytes, where: str) -> list[Fault | ClipNote | Decoded]:
        """Faults of the frames, read from the first on, and once from the middle on as training reads them."""
        index, named = self.index, f"{member.key} of {member.shard}"
        try:
            reading, info = read(media, name=named), probe(media, name=named, timeline=True)
        except ValueError as error:
            return [Fault("decode", where, str(error))]
        said = (int(index.frames[row]), int(index.heights[row]), int(index.widths[row]))
        found: list[Fault | ClipNote | Decoded] = [Decoded(row)]
        found += [ClipNote(where, what) for what in (*info.odd, *([info.lacks] if info.lacks else []))]
        if not reading.report.clean:
            found.append(Fault("decode", where, f"it does not decode cleanly: {reading.report}"))
        if reading.frames.shape[:3] != said:
            found.append(Fault("shape", where, f"it decodes to {reading.frames.shape[:3]} frames, rows and columns, the index says {said}"))
        rates = (info.fps, reading.fps)  # by the packets, and by the header, as older indexes have it
        if all(abs(rate / float(index.fps[row]) - 1) > 1e-3 for rate in rates):
            found.append(Fault("rate", where, f"it has {info.fps:g} frames a second, the index says {index.fps[row]:g}"))
        return found + self._middle(media, reading.frames, named, where)

    def _middle(self, media: bytes, frames: UInt8[np.ndarray, "T H W 3"], named: str, where: str) -> list[Fault]:
        middle = len(frames) // 2
        try:
            again = read(media, first=middle, frames=min(_SOUGHT, len(frames) - middle), name=named)
        except ValueError as error:
            return [Fault("seek", where, str(error))]
        if np.array_equal(again.frames, frames[middle : middle + len(again.frames)]):
            return []
        return [Fault("seek", where, f"its frames from number {middle} on are others than when it is read from its beginning")]


@lru_cache(maxsize=1)
def _compare(folder: Path, decode: float) -> _Compare:
    """The `_Compare` of a process, made once, however many units it is sent."""
    return _Compare(Index.open(folder), decode)


def _captions(index: Index, checked: Checked) -> None:
    """Note clips without captions, and captions that the text encoders of stored states have cut, or that nobody knows how many are."""
    there = captioned([index])
    checked.notes += there.lines(None)
    stored = sorted(index.folder.glob("text-????????.json"))
    for path in stored:
        try:
            cut = cut_in(path)
        except ValueError as error:
            checked.add("captions", path.name, str(error))
            continue
        unknown = [f"{path.name}: it is of a version that did not count the captions that it cut; sora encode into a new one counts them"]
        checked.notes += unknown if cut is None else [f"{path.name}: {one.line()}" for one in cut]
    if there.kinds and not stored:
        checked.notes.append(
            "how many captions a text encoder cuts is not known here, where none has encoded them: sora plan data=videos text=… says it"
        )


def _latents(index: Index, checked: Checked) -> None:
    """Check the latents of every VAE that the dataset was encoded with."""
    for path in sorted(index.folder.glob("latents-????????.json")):
        try:
            described = fitting(read_json(path, limit=LIST, within=index.folder), {"vae": text}, str(path))
            latents = LatentIndex(index, described["vae"])
            latents.check()
        except (ValueError, AttributeError) as error:
            checked.add("latents", path.name, str(error))
            continue
        there = np.flatnonzero(latents.shapes.any(axis=1)).tolist()  # clips without latents could not be encoded
        for row in there:
            try:
                found = latents.latents(row)
            except ValueError as error:
                checked.add("latents", f"{path.name}: {index.key(row)}", str(error))
                continue
            if tuple(found.shape[1:]) != tuple(latents.shapes[row].tolist()):
                checked.add(
                    "latents", f"{path.name}: {index.key(row)}", f"they are of shape {tuple(found.shape)}, another than the index says"
                )
        checked.counts["latents"] += len(there)
