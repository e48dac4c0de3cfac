"""Pieces of work that are kept as soon as they are done, so that a job that is killed goes on, and several jobs may share it.

OUTPUT/units/ab/abc….unit   what came of one unit: bytes of everything, then a JSON of what is said of each, its length, its SHA-256

A unit is known by what it is made from, content and settings, so nothing stale is ever taken: its name is a hash of that. A file appears
under its name only when it is whole. The folder goes when all of it is joined.
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
    """A share of some work, for several jobs at once: each `of_all`-th unit from `number` on."""

    number: int = 0
    of_all: int = 1

    @staticmethod
    def of(said: Sequence[Any] | None) -> JobPart:
        """part=[number, of_all]; None: everything.

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
    """A unit that is being written: `add` what it gives, in order. again: a later job makes it anew, since what failed may not have been
    its fault."""

    def __init__(self, file: BinaryIO) -> None:
        self.again = False
        self.records: list[dict[str, Any]] = []
        self._file = file

    def add(self, record: dict[str, Any], media: bytes = b"") -> None:
        """record: JSON-able."""
        self._file.write(media)
        self.records.append({"record": record, "size": len(media), "sha256": hashlib.sha256(media).hexdigest()})


class Units:
    """The units of a job that writes into `output`, which it makes; `with Units(…) as units`, and `remove` when they are joined.

    mark: the file of `output` that says that it is whole. doing: for messages, as in "preparing".

    Raises:
        ValueError: another process makes this part of it, or all of it, or `output` is whole, or holds something else.
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
        if not any(self.folder.glob("*/*.unit")) and self.part.of_all == 1:  # nothing to go on with
            shutil.rmtree(self.folder, ignore_errors=True)
        self._locks.close()
        with suppress(OSError):  # it holds something, or went with the lock
            self.output.rmdir()

    @contextmanager
    def writing(self, identity: str) -> Iterator[UnitWriter]:
        """Write a unit, which is kept at a clean end."""
        path = _path(self.folder, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_of(path)
        try:
            with named_errors(path), open(staging, "wb", buffering=1 << 20) as file:
                unit = UnitWriter(file)
                yield unit
                said = json.dumps({"again": unit.again, "records": unit.records}, allow_nan=False).encode()
                file.write(said + len(said).to_bytes(8, "little") + hashlib.sha256(said).digest())
            # Not synced: a unit that a machine's death leaves in pieces is found so by its hash, and made again.
            os.replace(staging, path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise

    def records(self, identity: str) -> list[dict[str, Any]]:
        """What is said of everything that a unit gave."""
        return [entry["record"] for entry in _said(_path(self.folder, identity))["records"]]

    def read(self, identity: str) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Everything that a unit gave: what is said of it, and its bytes. Raises ValueError where it is damaged."""
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
        """Where a job was stopped between its end and the removal of what it was made from, that takes as much room again."""
        with alone_in(self.output, self._doing):
            self.remove()
        raise ValueError(f"{self.output} is whole already, and what was left of making it is removed now; name another folder for another")

    def _begun(self) -> bool:
        """Whether a job of this kind has only just begun here: nothing but its locks."""
        held = [path.name.startswith(NAME) for path in self.output.iterdir()] if self.output.is_dir() else []
        return bool(held) and all(held)

    def _not_while_whole(self) -> None:
        """A job without part joins what the parts made, so that none may begin meanwhile; another part that looks is gone in a moment."""
        for attempt in range(5):
            try:
                with alone_in(self.output, self._doing):
                    return
            except ValueError:
                if attempt == 4:
                    raise
                time.sleep(0.1)


def refuse_other_counts(folder: Path, part: JobPart, *, name: str, doing: str) -> None:
    """Raise ValueError where a process works on a part of another number of parts: the two would do the same work, or write the same files.

    name: what the locks of parts are called, up to -K-of-N; that of `part` is held already, so that one of two that begin at once sees
    the other.
    """
    advice = f"its parts and those of {part.of_all} would do the same work twice: give all jobs one N"
    for lock in sorted(folder.glob(f"{glob.escape(name)}-*-of-*")):
        said = re.fullmatch(r"(\d+)-of-(\d+)", lock.name.removeprefix(f"{name}-"))
        if said is not None and int(said[2]) != part.of_all:
            with alone_in(folder, f"{doing} part {said[1]} of {said[2]} of", name=lock.name, advice=advice):
                pass


def is_kept(folder: Path, identity: str) -> bool:
    """Whether a unit lies in `Units.folder`, whole, and need not be made again."""
    try:
        return not _said(_path(folder, identity))["again"]
    except (OSError, ValueError):
        return False


def identity_of(content: str, **settings: Any) -> str:
    """The name of a unit: a hash of the hash of its content and of what else it is made from (JSON-able)."""
    return hashlib.sha256(json.dumps([content, settings], sort_keys=True, allow_nan=False).encode()).hexdigest()


def _path(folder: Path, identity: str) -> Path:
    return folder / identity[:2] / f"{identity}.unit"


def _said(path: Path) -> dict[str, Any]:
    """A unit's JSON. Raises OSError or ValueError where it is not there or not whole."""
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
