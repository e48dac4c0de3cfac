"""The answers of captioners, kept as they come: whatever ends a job, an answer that was paid for is not asked for again.

    CACHE/<hash of captioner, prompt and settings>/<job>.answers

Each line has the length of its JSON, a checksum of it, and the JSON. A job appends to a file of its own, one write for each answer, so
several jobs share a folder without a lock. A line that a killed job or a full disk cut short is dropped when the folder is read, and
counted; what is behind it is read. A request is named by what it shows (its pictures, times and words), so a moved or renamed dataset, or
the same clip in another one, is answered from here.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from sora.captions.captioner import CaptionFields, CaptionResult
from sora.gate.files import appending, opened
from sora.gate.forms import Fields, Maybe, count, digest, fits, flag, real, text
from sora.gate.texts import CARD, json_of
from sora.system.files import named_errors, sync

SUFFIX = ".answers"
_LONGEST = 4 << 20  # bytes of a line
_WORDS = dict.fromkeys(("short", "dense", "camera", "light", "style", "text_seen"), text)
_FORM = Fields(
    {"id": digest, "fields": Maybe(Fields({**_WORDS, "subjects": [text], "actions": [text]}, closed=True)), "error": text}
    | {"notes": [text], "attempts": count, "tokens_in": count, "tokens_out": count, "seconds": real(0), "cut": flag},
    closed=True,
)


class AnswerJournal:
    """The answers in a folder: `get` one, `put` one. dropped: lines that could not be read.

    Only the places of answers are in memory, about 200 bytes each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.dropped = Path(folder), 0
        self._places: dict[bytes, tuple[Path, int, int, bool]] = {}
        self._files: dict[Path, BinaryIO] = {}
        self._own: int | None = None
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.name):
            self._read(path)

    def __len__(self) -> int:
        return len(self._places)

    def names(self) -> Iterator[str]:
        """The names of all requests that have an answer or a failure."""
        return (name.hex() for name in self._places)

    def has(self, name: str, *, failed: bool = True) -> bool:
        """Whether the request of this name has an answer, or a failure, if these count."""
        place = self._places.get(bytes.fromhex(name))
        return place is not None and (failed or place[3])

    def get(self, name: str) -> CaptionResult:
        """The result of a request. Raises KeyError if there is none, ValueError if its file has changed since."""
        path, offset, size, _ = self._places[bytes.fromhex(name)]
        file = self._file(path)
        file.seek(offset)
        value = _value(file.read(size))
        if value is None or value["id"] != name:
            raise ValueError(f"{path} has changed while it was in use; give the same command again")
        return _result(value)

    def put(self, result: CaptionResult) -> None:
        """Keep a result: it is in the file, in one write, when this returns."""
        said = json.dumps(asdict(result), ensure_ascii=True, allow_nan=False).encode("ascii")
        if self._own is None:
            self._open()
        assert self._own is not None
        line, path = b"%08x %08x %b\n" % (len(said), zlib.crc32(said), said), self._path
        with named_errors(path):
            left = memoryview(line)
            while left:
                left = left[os.write(self._own, left) :]
        self._places[bytes.fromhex(result.id)] = (path, self._end, len(line), result.fields is not None)
        self._end += len(line)

    def close(self) -> None:
        """Close the files; what was put is made durable."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._own is not None:
            os.close(self._own)
            self._own = None
            sync(self._path)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._own, self._end = appending(self._path), 0

    def _file(self, path: Path) -> BinaryIO:
        if path not in self._files:
            if len(self._files) >= 64:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = open(path, "rb")  # noqa: SIM115  (closed by `close`)
        return self._files[path]

    def _read(self, path: Path) -> None:
        with opened(path, within=self.folder) as file:
            for offset, line in _lines(file):
                value = _value(line)
                if value is None:
                    self.dropped += 1
                    continue
                name = bytes.fromhex(value["id"])
                good = value["fields"] is not None
                if good or name not in self._places:  # a later success stands in for a failure, never the other way
                    self._places[name] = (path, offset, len(line), good)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while line := file.readline(_LONGEST):
        yield offset, line
        offset += len(line)


def _value(line: bytes) -> dict[str, Any] | None:
    """The JSON of a line; None if it is cut, changed or of another form."""
    if len(line) < 20 or not line.endswith(b"\n"):
        return None
    said = line[18:-1]
    try:
        if int(line[:8], 16) != len(said) or int(line[9:17], 16) != zlib.crc32(said):
            return None
        value = json_of(said, limit=CARD)
    except (ValueError, RecursionError):
        return None
    return value if fits(value, _FORM) else None


def _result(value: Mapping[str, Any]) -> CaptionResult:
    fields = value["fields"]
    if fields is not None:
        fields = CaptionFields(**fields | {name: tuple(fields[name]) for name in ("subjects", "actions")})
    return CaptionResult(**{**value, "fields": fields, "notes": tuple(value["notes"])})
