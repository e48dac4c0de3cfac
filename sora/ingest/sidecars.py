"""Captions beside the videos of a folder: files with a video's name, and tables. Those that match no video are counted and named.

a.txt  a.mp4.txt  a.dense.txt  a.caption  a.json    for a.mp4, in capitals or not
metadata.jsonl  metadata.csv  metadata.parquet      for the videos below their folder, by file_name, as on Hugging Face
captions=FILE                                       for all videos
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sora.data.index.rows import Caption
from sora.gate.files import refuse_outside
from sora.gate.records import Record, json_of, read_bytes, records, text_of
from sora.ingest.clip_texts import CaptionWords, Said, captions_of, joined, plain
from sora.ingest.tree import legible
from sora.system.terminal import counted

_MOST_BYTES = 1 << 20  # bytes of one file beside a video
_LISTED = 1000  # the most names of one kind in a report
_SHOWN = 3  # the most names in a line


@dataclass
class Unused:
    """Caption files and rows without effect, for the report and the last lines of a command.

    rows: for each table, the names in it that match no video. of: how many rows each table has. files: caption files without a video.
    silent: files without a caption, and why. keys: unknown keys of JSON and columns that might hold captions, with counts. empty: the
    number of empty texts.
    """

    rows: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    of: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    keys: Counter[str] = field(default_factory=Counter)
    empty: int = 0

    def add(self, said: Said) -> None:
        self.keys.update(said.unread)
        self.empty += said.empty

    def report(self) -> dict[str, Any]:
        """All of it for report.json; of long lists the first names."""
        rows = {table: self.rows.get(table, []) for table in self.of}
        return {
            "tables": {
                table: {"rows": self.of[table], "without_video": len(names), "names": names[:_LISTED]} for table, names in rows.items()
            },
            "files_without_video": self.files[:_LISTED],
            "files_without_caption": dict(list(self.silent.items())[:_LISTED]),
            "keys_not_read": dict(self.keys),
            "empty_texts": self.empty,
        }

    def lines(self) -> list[str]:
        """Lines for people."""
        told = [
            f"{len(names)} of {counted(self.of[file], 'row')} of {file} {'fits' if len(names) == 1 else 'fit'} no video ({_some(names)})"
            for file, names in self.rows.items()
            if names
        ]
        if self.files:
            told.append(f"caption files that fit no video: {len(self.files)} ({_some(self.files)})")
        if self.silent:
            silent = _some([f"{name}: {why}" for name, why in self.silent.items()])
            told.append(f"caption files without a caption: {len(self.silent)} ({silent})")
        if self.empty:
            told.append(f"empty captions in tables: {self.empty}")
        if self.keys:
            named = ", ".join(f"{name} ({count})" for name, count in self.keys.most_common(_SHOWN))
            told.append(f"keys that are not read as captions: {named}; captions.keys={{KIND: KEY}} reads them")
        return told


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])


class Sidecars:
    """The captions of the videos of a folder.

    videos: paths relative to the folder, with /. table: a file with rows for them, as captions=FILE. `unused` is complete once the captions
    of every video were asked for.

    Raises:
        ValueError: a table cannot be read, or none of its rows matches a video; the message has the line.
    """

    def __init__(self, folder: Path, videos: Sequence[str], words: CaptionWords, *, table: Path | None = None) -> None:
        self.folder, self.words, self.unused = Path(folder), words, Unused()
        self._beside: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        self._written: dict[str, list[Caption]] = defaultdict(list)
        self._wrong: dict[str, str] = {}
        self._keys, self._columns = set[str](), set[str]()  # the keys of files and the columns of tables that were met
        if table is not None:
            self._read(table, f"captions={table}", table.name, videos, below="", must=True)
        self._names = files = list(self._files(videos))
        own = {table.absolute()} if table is not None else set()
        for name in files:
            if words.is_table(name) and (self.folder / name).absolute() not in own:
                self._read(self.folder / name, str(self.folder / name), name, videos, below=name.rpartition("/")[0], must=False)
        owners = _Owners(videos)
        for name in files:
            if words.is_table(name) or (self.folder / name).absolute() in own:
                continue
            for video, suffix in owners.of(name):
                kind = words.told_by(suffix)
                self._keys.add(plain(suffix.rpartition(".")[0]))
                if kind is not None:
                    self._beside[video].append((self.folder / name, kind))
            if words.told_by(PurePosixPath(name).suffix.lstrip(".")) and not any(words.told_by(rest) for _, rest in owners.of(name)):
                self.unused.files.append(name)

    def of(self, video: str) -> tuple[Caption, ...]:
        """The captions of a video from tables, JSON and texts. Raises ValueError if a file or a row for it cannot be read."""
        if video in self._wrong:
            raise ValueError(self._wrong[video])
        found = [tuple(self._written.get(video, ()))]
        for path, kind in sorted(self._beside.get(video, ()), key=lambda one: (one[0].suffix.lower() != ".json", one[0].name)):
            _refuse_linked(path, self.folder / video, self.folder)
            said, name = _read_beside(path, self.words, kind), path.relative_to(self.folder).as_posix()
            self._keys |= said.keys
            self.unused.keys.update(said.unread)
            if not said.captions:
                keys = f"its keys are no captions: {', '.join(said.unread)}" if said.unread else "it has no caption"
                self.unused.silent[name] = "it is empty" if said.empty else keys
            found.append(tuple(said.captions))
        return joined(found)

    def refuse_unmet(self) -> None:
        """Raise ValueError for a key, suffix or table that was set and that nothing here has. Call it once all captions were asked for."""
        self.words.refuse_unmet((self._keys | self._columns) - {""}, self._columns, self._names)

    def taken(self) -> set[str]:
        """The files of the folder that were read or counted as captions, as relative paths."""
        beside = {path.relative_to(self.folder).as_posix() for files in self._beside.values() for path, _ in files}
        return beside | set(self.unused.files) | set(self.unused.of)

    def _files(self, videos: Sequence[str]) -> Iterator[str]:
        """The files in the folders of the videos and above them, in order, without hidden files and the videos."""
        places = {parent.as_posix() for video in videos for parent in PurePosixPath(video).parents}
        known = set(videos)
        for place in sorted(places):
            try:
                # A broken link is listed too, so that it is reported as unreadable.
                there = [path for path in (self.folder / place).iterdir() if path.is_file() or not path.exists()]
                found = sorted(path.name for path in there if not path.name.startswith("."))
            except OSError as error:
                raise ValueError(f"{self.folder / place} cannot be read: {error.strerror}") from None
            names = (name if place == "." else f"{place}/{name}" for name in found if legible(name) == name)
            yield from (name for name in names if name not in known)

    def _read(self, path: Path, named: str, told: str, videos: Sequence[str], *, below: str, must: bool) -> None:
        """Read the rows of a table. below: the folder that its names are relative to. must: raise an error if the table has no caption."""
        if not must:
            refuse_outside(path, self.folder)
        lookup = _by_name([video for video in videos if not below or video.startswith(f"{below}/")], below)
        matched, columns = 0, dict[str, None]()
        for record in records(path, named) if must else _advised(records(path, named)):
            self.unused.of[told] += 1
            columns |= dict.fromkeys(map(str, record.values))
            name = self._named(record, must)
            video = lookup.get(str(PurePosixPath(name)), lookup.get(_spelt(name))) if name is not None else None
            if video is None:
                self.unused.rows[told].append(record.place if name is None else name)
                continue
            matched += 1
            self._take(video, record)
        if must and not matched:
            shown = _some(self.unused.rows[told]) or "nothing"
            raise ValueError(f"{named} matches none of {counted(len(videos), 'video')}: it names {shown}, the videos are {_some(videos)}")
        self._columns |= {plain(column) for column in columns}
        if not any(plain(column) in self.words.kinds for column in columns):
            why = f"no column with captions, only {', '.join(columns) or 'none'}"
            if must:
                raise ValueError(f"{named} has {why}; captions.keys={{original: NAME}} says which holds them")
            self.unused.silent[told] = why

    def _named(self, record: Record, must: bool) -> str | None:
        """The name of a video in a row; None if the row has none."""
        values = {plain(str(name)): value for name, value in record.values.items()}
        found = next((values[name] for name in self.words.files if values.get(name) not in (None, "")), None)
        if found is None and must:
            has = ", ".join(map(str, record.values))
            raise ValueError(f"{record.place} names no video: it has {has or 'nothing'}; captions.keys={{file: NAME}} says which key does")
        return None if found is None else str(found)

    def _take(self, video: str, record: Record) -> None:
        """Store a row's captions; an error in them is the video's fault, not the table's."""
        files = set(self.words.files) - set(self.words.kinds)
        try:
            said = captions_of({name: value for name, value in record.values.items() if plain(str(name)) not in files}, self.words)
        except ValueError as error:
            self._wrong.setdefault(video, f"{record.place}: {error}")
            return
        self.unused.add(said)
        self._columns |= said.keys
        self._written[video] += said.captions


def _refuse_linked(path: Path, video: Path, folder: Path) -> None:
    """Raise ValueError for a file that links out of the folder, unless its video links to the same place: a folder of links to pairs of
    files is fine, but a caption must not come from anywhere on the disk."""
    if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != os.path.dirname(os.path.realpath(video)):
        refuse_outside(path, folder)


def _read_beside(path: Path, words: CaptionWords, kind: str) -> Said:
    text = text_of(read_bytes(path, str(path), most=_MOST_BYTES), str(path))
    entry = json_of(text, str(path)) if path.suffix.lower() == ".json" else text
    try:
        return captions_of(entry, words, kind=kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Owners:
    """Finds the videos that a file beside them belongs to: those whose name, with or without its suffix, the file's name begins with."""

    def __init__(self, videos: Sequence[str]) -> None:
        self._videos: dict[str, list[tuple[str, str]]] = defaultdict(list)  # normalised name: the videos, and their own spelling
        for video in videos:
            for name in {video, _stem(video)}:
                self._videos[_spelt(name)].append((name, video))

    def of(self, file: str) -> list[tuple[str, str]]:
        """(video, suffix of the file after the video's name) for each video that the file belongs to."""
        folder, _, name = file.rpartition("/")
        dots = [place for place, letter in enumerate(name) if letter == "."]
        for dot in reversed(dots[-3:]):
            begun = f"{folder}/{name[:dot]}" if folder else name[:dot]
            found = self._videos.get(_spelt(begun), [])
            exact = [video for spelt, video in found if spelt == begun]  # among names that differ only in Unicode composition
            if found:
                return [(video, name[dot + 1 :]) for video in exact or [video for _, video in found]]
        return []


def _spelt(name: str) -> str:
    """A name normalised for comparison: é may be stored as one code point or two."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def _stem(video: str) -> str:
    return str(PurePosixPath(video).with_suffix(""))


def _by_name(videos: Iterable[str], below: str) -> Mapping[str, str]:
    """Every name that means exactly one video: its path relative to `below`, that path without suffix, its file name, its stem."""
    alike, exact = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    whole: dict[str, str] = {}
    for video in videos:
        relative = video.removeprefix(f"{below}/") if below else video
        whole[relative] = video
        for name in {relative, _stem(relative), PurePosixPath(video).name, PurePosixPath(video).stem}:
            alike[_spelt(name)].add(video)
            exact[name].add(video)  # names may differ only in Unicode composition
    return {name: next(iter(owners)) for names in (alike, exact) for name, owners in names.items() if len(owners) == 1} | whole


def _advised(rows: Iterator[Record]) -> Iterator[Record]:
    """The rows of a table that the user did not name; an error message adds how to ignore such tables."""
    try:
        yield from rows
    except ValueError as error:
        raise ValueError(f"{error}; captions.tables=[] leaves such tables unread") from None
