"""What a curation begins with: the videos of a folder or a list, or the clips of a dataset, each as a unit named by its content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from sora.curation.results import hashed
from sora.data.index.index import DATASET, Index
from sora.data.index.rows import Caption, write_table
from sora.data.index.units import WHOLE, JobPart
from sora.gate import parquet
from sora.gate.records import TABLES, lines_of, read_bytes, records, refuse_half, text_of
from sora.ingest.clip_texts import WORDS, CaptionWords
from sora.ingest.sidecars import Sidecars
from sora.ingest.tree import Passed, Refused, Run, Sorted, TreeWords, kind_in, legible, sorted_files
from sora.system.files import file_hash
from sora.system.terminal import counted
from sora.video.demuxing.kinds import MediaFormat

KNOWN = "inputs"  # in WORK: hashes of files, by name, size and times
_FILE = ("file", "file_name", "path", "video")
_TOLD = {"licence": ("licence", "license"), "consent": ("consent",), "origin": ("source", "url", "origin")}
_CACHE = pa.schema([("name", pa.string()), ("size", pa.int64()), ("changed", pa.int64()), ("inode", pa.int64()), ("sha256", pa.string())])
_HASHED_AT_ONCE = 8  # files


class Unhashed(ValueError):
    """Raised if the hashes of some files are not known yet, because other parts have not read them."""


@dataclass(frozen=True)
class Unit:
    """A unit of work. name: of results, a hash of its content. told: for messages. path: of the video, or of the dataset. shard: its number
    in the dataset; None for a video."""

    name: str
    told: str
    path: str
    shard: int | None = None


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a video from outside of it. licence, consent: in its owner's words, "" if not known. origin: where it is from."""

    captions: tuple[Caption, ...] = ()
    licence: str = ""
    consent: str = ""
    origin: str = ""

    def described(self) -> dict[str, Any]:
        said = [[one.kind, one.text, one.captioner] for one in self.captions]
        return {"captions": said, "licence": self.licence, "consent": self.consent, "origin": self.origin}


@dataclass
class Inputs:
    """The input of a curation. units: in the order of their names. facts: by the unit's name. copies: videos of the same bytes as an
    earlier one, with that one's name.

    refused: files that are meant as videos and are none. passed: files that were not examined. told: lines for people.
    """

    units: list[Unit]
    facts: dict[str, SourceFacts] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    dataset: Path | None = None

    @property
    def identity(self) -> str:
        """A hash of the units, in order, and of all that is known of them from outside."""
        return hashed([[one.name, one.told, self.facts.get(one.name, SourceFacts()).described()] for one in self.units], self.copies)


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How an input is read. words: how files with captions are found. captions: a table of captions. facts: a table with columns `file`,
    `licence`, `consent` and `source`. leave_out: patterns of paths that are skipped. follow_links: whether linked folders are walked."""

    words: CaptionWords = WORDS
    captions: Path | None = None
    facts: Path | None = None
    leave_out: Sequence[str] = ()
    follow_links: bool = False


def inputs_of(
    place: Path,
    work: Path,
    settings: InputSettings,
    *,
    run: Run,
    part: JobPart = WHOLE,
    unread: bool = True,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Inputs:
    """The input at `place`: a dataset, a folder of videos, or a list of videos (a text with a path on each line, or a table with `file`).

    work: the folder that remembers hashes of files. part: only its share of the files is hashed and returned. run: maps a function over
    items in guarded processes. unread: whether files whose hash is not known are read; if not, `Unhashed` is raised. progress: called with
    counts of hashed files.

    Raises:
        ValueError: there is no such place, it holds no video, or a table does not fit.
    """
    if (place / DATASET).is_file():
        given = {"captions.file": settings.captions, "facts": settings.facts, "leave_out": settings.leave_out}
        for key in (key for key, value in given.items() if value):
            raise ValueError(f"{key} is for videos, and input={place} is a dataset, whose rows hold captions and facts; leave it out")
        return _of_dataset(place, part)
    if place.is_dir():
        found = _walked(place, work, settings, run)
        home = place
    elif place.is_file():
        found, home = _listed(place, run)
    else:
        raise ValueError(f"input={place} does not exist; give a folder of videos, a list of them or a dataset")
    hashes = _hashes(home, _mine(home, found, part), work, run=run, part=part, unread=unread, progress=progress)
    return _of_files(home, found, settings, hashes, part, listed=place.is_file())


_IMAGES = "sora curate takes videos: sora prepare takes images, too"


def _walked(place: Path, work: Path, settings: InputSettings, run: Run) -> Sorted:
    """The files of a folder."""
    said = TreeWords(prefix="", unwanted=_IMAGES, wanted="video")
    return sorted_files(place, run, settings.leave_out, images=False, follow=settings.follow_links, besides=work, words=said)


def _of_dataset(folder: Path, part: JobPart) -> Inputs:
    index = Index.open(folder)
    entries = index.described["shards"]
    units = [Unit(hashed("shard", entry["meta_sha256"]), entry["shard"], str(folder), number) for number, entry in enumerate(entries)]
    return Inputs(sorted(part.some(units).values(), key=lambda unit: unit.name), dataset=folder)


def _listed(path: Path, run: Run) -> tuple[Sorted, Path]:
    """The videos that a list names, by their absolute paths, and the folder that their names are relative to: the list's, or one that holds
    them all if some lie elsewhere, so that captions beside them are found."""
    named = f"input={path}"
    if path.suffix.lower() in TABLES:
        names = [_file_of(record.values, record.place) for record in records(path, named, bare="file")]
    else:
        names = [line.strip() for line in lines_of(text_of(read_bytes(path, named), named), named)]
    home = path.absolute().parent
    wanted = list(dict.fromkeys(os.path.normpath(home / name) for name in names if name and not name.startswith("#")))
    if not wanted:
        raise ValueError(f"{named} is empty; write the path of a video on each line")
    found = Sorted()
    for done in run(_kind, wanted):
        name, kind = done.item, done.result if done.result is not None else done.reason
        if isinstance(kind, MediaFormat) and kind.read and not kind.picture:
            found.media.append(name)
        else:
            found.refused.append(Refused(legible(name), 0.0, kind if isinstance(kind, str) else f"is {kind.what}, no video"))
    if not found.media:
        told = "; ".join(f"{one.source} {one.reason}" for one in found.refused[:3])
        raise ValueError(f"{named} names no video that can be read{f': {told}' if told else ''}")
    found.media.sort()
    found.refused.sort()
    inside = all(Path(name).is_relative_to(home) for name in wanted)
    return found, home if inside else Path(os.path.commonpath([os.path.dirname(name) for name in wanted]))


def _kind(name: str) -> MediaFormat | str:
    refuse_half(name, "a path")
    return kind_in(Path(name))


def _file_of(values: Mapping[str, Any], place: str) -> str:
    found = next((values[name] for name in _FILE if values.get(name)), None)
    if not isinstance(found, str):
        if any(name in values for name in _FILE):
            raise ValueError(f"{place} names no video: its `file` is {'empty' if found is None else 'no text'}")
        raise ValueError(f"{place} names no video: it needs a column `file`, and has {', '.join(map(str, values)) or 'nothing'}")
    return found


def _named(home: Path, found: Sorted) -> list[str]:
    """The videos' paths relative to `home`."""
    return [os.path.relpath(name, home) if os.path.isabs(name) else name for name in found.media]


def _mine(home: Path, found: Sorted, part: JobPart) -> list[str]:
    return list(part.some(_named(home, found)).values())


def _of_files(home: Path, found: Sorted, settings: InputSettings, hashes: Mapping[str, str], part: JobPart, *, listed: bool) -> Inputs:
    inside, mine = _named(home, found), _mine(home, found, part)
    first: dict[str, str] = {}
    inputs = Inputs([], refused=found.refused)
    for name in mine:
        said = hashes[name]
        if len(said) != 64:
            inputs.refused.append(Refused(name, 0.0, said))
        elif said in first:
            inputs.copies[name] = first[said]
        else:
            first[said] = name
            inputs.units.append(Unit(said, name, str(home / name)))
    sidecars = Sidecars(home, inside, settings.words, table=settings.captions)
    told = _told_facts(settings.facts, home, inside)
    wrong = set[str]()
    for unit in inputs.units:
        try:
            said = sidecars.of(unit.told)
        except ValueError as error:
            inputs.refused.append(Refused(unit.told, 0.0, str(error)))
            wrong.add(unit.name)
            continue
        inputs.facts[unit.name] = replace(told.get(unit.told, SourceFacts()), captions=said)
    inputs.units = sorted((unit for unit in inputs.units if unit.name not in wrong), key=lambda unit: unit.name)
    if part.of_all == 1:
        sidecars.refuse_unmet()
        if listed:  # what lies beside a list, or belongs to videos that it leaves out, is not meant
            sidecars.unused.files.clear()
        inputs.told = sidecars.unused.lines()
    inputs.passed = found.passed_over(sidecars.taken())
    return inputs


def _told_facts(path: Path | None, home: Path, names: Sequence[str]) -> dict[str, SourceFacts]:
    """The facts of videos in a table, by their names, which may also be relative to the table. Raises ValueError for a row that fits no
    video, rows of one video that differ, and a table that tells nothing."""
    if path is None:
        return {}
    short: dict[str, str | None] = {}
    for name in names:
        base = PurePosixPath(name).name
        short[base] = name if base not in short else None
    known, told, columns = set(names), dict[str, SourceFacts](), dict[str, None]()
    for record in records(path, f"facts={path}"):
        said = _file_of(record.values, record.place)
        columns |= dict.fromkeys(map(str, record.values))
        beside = os.path.relpath(path.absolute().parent / said, home.absolute())
        name = next((one for one in (said, beside) if one in known), short.get(said))
        if name is None:
            why = "several videos are called so" if said in short else "no video is called so"
            raise ValueError(f"{record.place}: {said[:200]}: {why}; name its path in the input's folder")
        texts = {field: next((str(record.values[one]) for one in keys if record.values.get(one)), "") for field, keys in _TOLD.items()}
        for text in texts.values():
            refuse_half(text, record.place)
        facts = SourceFacts(licence=texts["licence"], consent=texts["consent"], origin=texts["origin"])
        if told.setdefault(name, facts) != facts:
            raise ValueError(f"{record.place}: {said[:200]} has another row, which says otherwise; leave one of them out")
    if not any(one in columns for keys in _TOLD.values() for one in keys):
        raise ValueError(f"facts={path} has none of the columns licence, consent and source, only {', '.join(columns) or 'none'}")
    return told


def _hashes(
    home: Path, names: Sequence[str], work: Path, *, run: Run, part: JobPart, unread: bool, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """The SHA-256 of files, or why one cannot be read. Files that did not change since the last time are not read again."""
    known: dict[tuple[str, int, int, int], str] = {}
    for path in sorted(work.glob(f"{KNOWN}-*.parquet")):
        try:
            table = parquet.read(path).cast(_CACHE)
        except (ValueError, pa.ArrowException):  # only a cache
            continue
        columns = [table[name].to_pylist() for name in _CACHE.names]
        known |= {(name, size, changed, inode): sha for name, size, changed, inode, sha in zip(*columns, strict=True)}
    marks = {name: _mark(home, name) for name in names}
    found = {name: known[(name, *mark)] for name, mark in marks.items() if mark and (name, *mark) in known}
    left = [name for name in names if name not in found]
    if left and not unread:
        raise Unhashed(f"{counted(len(left), 'file')} of other parts, such as {left[0]}")
    progress(len(found), len(names))
    chunks = [left[first : first + _HASHED_AT_ONCE] for first in range(0, len(left), _HASHED_AT_ONCE)]
    for done in run(_Hash(str(home)), chunks):
        found |= dict(zip(done.item, done.result or [done.reason] * len(done.item), strict=True))
        progress(len(found), len(names))
    rows = [(name, *mark, found[name]) for name in names if (mark := marks[name]) and len(found[name]) == 64]
    if left and rows:
        columns = dict(zip(_CACHE.names, map(list, zip(*rows, strict=True)), strict=True))
        write_table(work / f"{KNOWN}-{part.number}-of-{part.of_all}.parquet", pa.table(columns, schema=_CACHE), lasting=False)
    return found


def _mark(home: Path, name: str) -> tuple[int, int, int] | None:
    """The size, the time of the last change of its entry (which nobody sets by hand) and the inode of a file; None if it cannot be read."""
    try:
        about = os.stat(home / name)
    except OSError:
        return None
    return about.st_size, about.st_ctime_ns, about.st_ino


@dataclass(frozen=True)
class _Hash:
    home: str

    def __call__(self, names: Iterable[str]) -> list[str]:
        return [self._one(name) for name in names]

    def _one(self, name: str) -> str:
        try:
            return file_hash(Path(self.home) / name)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except ValueError as error:
            return str(error)
