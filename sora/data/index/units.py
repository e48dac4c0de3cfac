"""Units of work that are saved as soon as they are done, so that a job that is killed goes on, and several jobs can share the work.

OUTPUT/units/ab/abc….unit   the results of one unit: all bytes, then a JSON with a record for each result, its length, its SHA-256

A unit is named by a hash of its content and settings, so a stale result is never used. A file appears under its name only when it is whole.
The folder is removed once all units are joined.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from sora.gate.files import opened
from sora.gate.texts import LIST, json_of
from sora.system.files import named_errors, staging_of
from sora.system.locks import NAME, alone_in

FOLDER = "units"
_TAIL = 8 + 32
Item = TypeVar("Item")


@dataclass(frozen=True)
class JobPart:
    """One job's share of the work when several jobs run at once: every `of_all`-th unit, starting with unit `number`."""

    number: int = 0
    of_all: int = 1

    @staticmethod
    def of(said: Sequence[Any] | None) -> JobPart:
        """The part that `part=[number, of_all]` means; None means everything.

        Raises:
            ValueError: it is not two whole numbers, the first from 0 and below the second.
        """
        if said is None:
            return JobPart()
        if len(said) != 2 or not all(isinstance(value, int) for value in said) or not 0 <= said[0] < said[1]:
            raise ValueError(f"part={list(said)} must be [K, N] with K from 0 to N - 1: the K-th of N jobs, such as part=[3,64]")
        return JobPart(*said)

    def some(self, units: Sequence[Item]) -> dict[int, Item]:
        """The units of this part, by number."""
        return {number: unit for number, unit in enumerate(units) if number % self.of_all == self.number}

    def __str__(self) -> str:
        return f"{self.number} of {self.of_all}"


WHOLE = JobPart()


class UnitWriter:
    """A unit that is being written: call `add` for its results in order. again: a later job makes it anew, as its failure may be
    transient."""

    def __init__(self, file: BinaryIO) -> None:
        self.again = False
        self.records: list[dict[str, Any]] = []
        self._file = file

    def add(self, record: dict[str, Any], media: bytes = b"") -> None:
        """Add a result: a JSON-able record and its bytes."""
        self._file.write(media)
        self.records.append({"record": record, "size": len(media), "sha256": hashlib.sha256(media).hexdigest()})


class Units:
    """The units of a job that writes into the folder `output`, which it creates: `with Units(…) as units`, and `remove` after the join.

    mark: the file in `output` that says the output is whole. doing: a word for messages, as in "preparing".

    Raises:
        ValueError: another process works on this part or on everything, or `output` is whole or holds something else.
    """

    def __init__(self, output: Path, *, part: JobPart, mark: str, doing: str) -> None:
        self.output, self.part, self.mark, self._doing = Path(output), part, mark, doing
        self.folder = self.output / FOLDER
        self._locks = ExitStack()

    def __enter__(self) -> Units:
        if (self.output / self.mark).exists() and self.folder.is_dir():
            self._clear_of_whole()
        there = self.output.exists() or self.output.is_symlink()
        if there and ((self.output / self.mark).exists() or not (self.folder.is_dir() or self._begun())):
            raise ValueError(f"{self.output} exists already; remove it or name another folder")
        with self._locks:
            if self.part.of_all == 1:
                self._locks.enter_context(alone_in(self.output, self._doing))
                for lock in sorted(self.output.glob(f"{NAME}-*")):
                    self._locks.enter_context(alone_in(self.output, f"{self._doing} a part of", name=lock.name))
            else:
                self._not_while_whole()
                name = f"{NAME}-{self.part.number}-of-{self.part.of_all}"
                self._locks.enter_context(alone_in(self.output, f"{self._doing} part {self.part} of", name=name))
                refuse_other_counts(self.output, self.part, name=NAME, doing=self._doing)
            self.folder.mkdir(exist_ok=True)
            self._locks = self._locks.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not any(self.folder.glob("*/*.unit")) and self.part.of_all == 1:  # no unit was saved
            shutil.rmtree(self.folder, ignore_errors=True)
        self._locks.close()
        with suppress(OSError):  # it is not empty, or was removed with the lock
            self.output.rmdir()

    @contextmanager
    def writing(self, identity: str) -> Iterator[UnitWriter]:
        """Write a unit, which is saved if the block ends without an error."""
        path = _path(self.folder, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_of(path)
        try:
            with named_errors(path), open(staging, "wb", buffering=1 << 20) as file:
                unit = UnitWriter(file)
                yield unit
                said = json.dumps({"again": unit.again, "records": unit.records}, allow_nan=False).encode()
                file.write(said + len(said).to_bytes(8, "little") + hashlib.sha256(said).digest())
            # Not synced: after a power failure the hash shows that a unit is damaged, and it is made again.
            os.replace(staging, path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise

    def records(self, identity: str) -> list[dict[str, Any]]:
        """The records of all results of a unit."""
        return [entry["record"] for entry in _said(_path(self.folder, identity))["records"]]

    def read(self, identity: str) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The results of a unit: record and bytes of each. Raises ValueError if the unit is damaged."""
        path = _path(self.folder, identity)
        entries = _said(path)["records"]
        with opened(path) as file:
            for entry in entries:
                media = file.read(entry["size"])
                if hashlib.sha256(media).hexdigest() != entry["sha256"]:
                    path.unlink()
                    raise ValueError(f"{path} was damaged and is removed; give the same command again, to make it anew")
                yield entry["record"], media

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _clear_of_whole(self) -> None:
        """Remove the units that a stopped job left beside its whole output, which take as much room again, and raise ValueError."""
        with alone_in(self.output, self._doing):
            self.remove()
        raise ValueError(f"{self.output} is whole already, and what was left of making it is removed now; name another folder for another")

    def _begun(self) -> bool:
        """Whether a job of this kind has only just begun here: the folder holds nothing but its locks."""
        held = [path.name.startswith(NAME) for path in self.output.iterdir()] if self.output.is_dir() else []
        return bool(held) and all(held)

    def _not_while_whole(self) -> None:
        """Raise ValueError while a job of all parts runs, since it joins what the parts made. A lock that is only tested is soon free."""
        for attempt in range(5):
            try:
                with alone_in(self.output, self._doing):
                    return
            except ValueError:
                if attempt == 4:
                    raise
                time.sleep(0.1)


def refuse_other_counts(folder: Path, part: JobPart, *, name: str, doing: str) -> None:
    """Raise ValueError if a process works on a part of another number of parts: the two would do the same work, or write the same files.

    name: the beginning of the names of the parts' locks, up to -K-of-N. The lock of `part` must be held already, so that of two processes
    that begin at once one sees the other.
    """
    advice = f"its parts and those of {part.of_all} would do the same work twice: give all jobs one N"
    for lock in sorted(folder.glob(f"{glob.escape(name)}-*-of-*")):
        said = re.fullmatch(r"(\d+)-of-(\d+)", lock.name.removeprefix(f"{name}-"))
        if said is not None and int(said[2]) != part.of_all:
            with alone_in(folder, f"{doing} part {said[1]} of {said[2]} of", name=lock.name, advice=advice):
                pass


def is_kept(folder: Path, identity: str) -> bool:
    """Whether a unit lies whole in `Units.folder` and need not be made again."""
    try:
        return not _said(_path(folder, identity))["again"]
    except (OSError, ValueError):
        return False


def identity_of(content: str, **settings: Any) -> str:
    """The name of a unit: a hash of its content's hash and of the JSON-able settings that it depends on."""
    return hashlib.sha256(json.dumps([content, settings], sort_keys=True, allow_nan=False).encode()).hexdigest()


def _path(folder: Path, identity: str) -> Path:
    return folder / identity[:2] / f"{identity}.unit"


def _said(path: Path) -> dict[str, Any]:
    """The JSON at the end of a unit's file. Raises OSError or ValueError if the file is missing or not whole."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < _TAIL:
            raise ValueError(f"{path} ends early")
        file.seek(size - _TAIL)
        tail = file.read(_TAIL)
        length = min(int.from_bytes(tail[:8], "little"), size - _TAIL)
        file.seek(size - _TAIL - length)
        said = file.read(length)
    if hashlib.sha256(said).digest() != tail[8:]:
        raise ValueError(f"{path} has changed")
    told = json_of(said, limit=LIST)
    if sum(entry["size"] for entry in told["records"]) != size - _TAIL - length:
        raise ValueError(f"{path} ends early")
    return told
