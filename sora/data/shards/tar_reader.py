"""Walks tar files that others wrote, whole or damaged, by their headers: nothing is extracted, and everything that is lost is named.

Damage that a tar reader skips in silence (a cut, a garbled header, a link, a name that leads out of the folder, members behind the end
mark) is recorded as a `Trouble` with its place. After garbage the walk continues at the next valid header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

BLOCK = 512
_ZEROS = bytes(BLOCK)
_CHUNK = 1 << 20
_MOST_HEADER = 1 << 20  # the most bytes of a long name or of a PAX header
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_REGULAR, _DIRECTORY, _LINKS, _DEVICES = b"\x000" + b"7", b"5", b"12", b"346"
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@runtime_checkable
class ByteFile(Protocol):
    """The methods of an open file that are used here; a stream may refuse `seek`."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...

    def close(self) -> None: ...


class Found(NamedTuple):
    """A file of a shard: `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


class Trouble(NamedTuple):
    """A part of a shard that cannot be used. kind: one word to count by. place: the member's name, or the position in the shard."""

    kind: str
    place: str
    reason: str


class TarWalk:
    """Iterates over the files of a tar in order: `for found in walk: … walk.content() …`. `troubles` grows as it goes.

    size: of the whole file in bytes; None for a stream, which is read from front to back and never sought in.

    Raises:
        ValueError: the file is empty, compressed, or no tar at all.
    """

    def __init__(self, file: ByteFile, *, size: int | None) -> None:
        self.file, self.size = file, size
        self.troubles: list[Trouble] = []
        self.ended = False  # an end mark was read, so the end of the shard is not cut off
        self._at = 0
        self._found: Found | None = None

    def __iter__(self) -> Iterator[Found]:
        long_name, large = None, None
        head = self._header(0)
        while head is not None:
            kind, size = head[156:157], _number(head[124:136])
            if large is not None and kind in _REGULAR:
                size, large = large, None
            start = self._at
            if kind in (b"L", b"x"):
                name, wide = self._extended(kind, size)
                long_name, large = name or long_name, wide if kind == b"x" else large
            elif kind not in b"Kg":
                name, long_name = long_name or _name(head), None
                if kind in _REGULAR and not name.endswith(b"/"):
                    found = self._file(name, start, size)
                    if found is not None:
                        self._found = found
                        yield found
                else:
                    size = self._special(kind, name, size)
            end = start + size + -size % BLOCK
            if self.size is not None and start + size > self.size:
                return
            head = self._header(end) if self._go(end) else None
        self._tail()

    def head(self, most: int) -> bytes:
        """Up to `most` bytes from the beginning of the current file; only where the shard can be sought in."""
        assert self._found is not None
        assert self.size is not None
        self._seek(self._found.offset)
        return self._take(min(most, self._found.size))

    def content(self) -> bytes:
        """The bytes of the current file; `ValueError` if the shard ends within it."""
        assert self._found is not None
        if self.size is not None:
            self.file.seek(self._found.offset)
            self._at = self._found.offset
        content = self._take(self._found.size)
        if len(content) < self._found.size:
            raise ValueError(f"the shard ends after {len(content)} of its {self._found.size} bytes")
        return content

    def _file(self, raw: bytes, start: int, size: int) -> Found | None:
        name = told(raw)
        why = _unsafe(raw)
        if why:
            self.troubles.append(Trouble("name", name, why))
        elif self.size is not None and start + size > self.size:
            self.troubles.append(Trouble("cut", name, f"the shard ends after {self.size - start} of its {size} bytes"))
        else:
            return Found(raw.decode().removeprefix("./"), start, size)
        return None

    def _special(self, kind: bytes, name: bytes, size: int) -> int:
        """Record a member that is not a regular file; return how many bytes follow its header."""
        if kind in _DIRECTORY or (kind in _REGULAR and name.endswith(b"/")):
            return 0
        if kind in _LINKS:
            self.troubles.append(Trouble("link", told(name), "is a link to another file; links are not followed"))
            return 0
        if kind in _DEVICES:
            self.troubles.append(Trouble("device", told(name), "is a device or a pipe, not a file"))
            return 0
        self.troubles.append(Trouble("type", told(name), f"is of type {kind!r}, which is not read (sparse files are not)"))
        return size

    def _extended(self, kind: bytes, size: int) -> tuple[bytes | None, int | None]:
        """The name and size that a GNU or PAX header gives to the next member."""
        if size > _MOST_HEADER:
            self.troubles.append(Trouble("header", f"byte {self._at}", f"an extended header has {size} bytes"))
            return None, None
        content = self._take(size)
        if kind == b"L":
            return content.rstrip(b"\0"), None
        name, wide = None, None
        for key, value in _pax(content):
            name = value if key == b"path" else name
            wide = int(value) if key == b"size" and value.isdigit() and len(value) < 19 else wide
        return name, wide

    def _header(self, at: int) -> bytes | None:
        """The header at byte `at`, or the next valid one after garbage; None at the end."""
        head = self._take(BLOCK)
        if not at:
            _refuse_others(head)
        if len(head) < BLOCK:
            if head.strip(b"\0"):
                self.troubles.append(Trouble("cut", f"byte {at}", f"the shard ends inside a header, after {len(head)} of {BLOCK} bytes"))
                self.ended = True
            return None
        if head == _ZEROS:
            self.ended = True
            return None
        if _whole(head):
            return head
        return self._after_garbage(at)

    def _after_garbage(self, at: int) -> bytes | None:
        place, most = at + BLOCK, 4 * BLOCK  # growing reads, since all bytes behind the header found are read again
        while chunk := self._take(most):
            most = min(2 * most, _CHUNK)
            for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
                head = chunk[start : start + BLOCK]
                if head[257:262] == b"ustar" and _whole(head):
                    self.troubles.append(Trouble("garbage", f"bytes {at} to {place + start}", "no tar header; what was here is lost"))
                    if self.size is None:
                        self._pushed = chunk[start + BLOCK :]
                        self._at = place + start + BLOCK
                    else:
                        self._seek(place + start + BLOCK)
                    return head
            place += len(chunk)
        if not at:
            raise ValueError("it is no tar file: it has no header at its beginning, nor behind it")
        self.troubles.append(
            Trouble("garbage", f"bytes {at} to {place}", "no tar header, up to the end of the shard; what was here is lost")
        )
        self.ended = True
        return None

    def _tail(self) -> None:
        """Record a missing end mark, or bytes behind it."""
        if not self.ended:
            self.troubles.append(Trouble("end", f"byte {self._at}", "the shard has no end mark: it may have been cut between two members"))
            return
        behind = self._at
        while chunk := self._take(_CHUNK):
            if chunk.strip(b"\0"):
                first = behind + len(chunk) - len(chunk.lstrip(b"\0"))
                why = "there are more bytes behind the end mark, which no tar reader reads (were shards joined?)"
                self.troubles.append(Trouble("behind", f"byte {first}", why))
                return
            behind += len(chunk)

    _pushed = b""

    def _take(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            if self._pushed:
                part, self._pushed = self._pushed[:missing], self._pushed[missing:]
            else:
                part = self.file.read(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self._at += size - missing
        return b"".join(parts)

    def _go(self, to: int) -> bool:
        """Move to byte `to`; return False if the stream ends before it."""
        if self.size is not None:
            self._seek(min(to, self.size))
            return True
        while self._at < to:
            if not self._take(min(_CHUNK, to - self._at)):
                self.troubles.append(Trouble("cut", f"byte {self._at}", "the stream ends inside a file"))
                self.ended = True
                return False
        return True

    def _seek(self, to: int) -> None:
        if to != self._at:
            self.file.seek(to)
            self._at = to


def sample_of(name: str) -> tuple[str, str] | None:
    """(key, suffix) of a member's name, as WebDataset splits it: the suffix begins at the first dot of the last path component."""
    match = _SAMPLE.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def told(name: bytes) -> str:
    """A member's name for people and logs: one line, printable, at most 200 bytes."""
    text = _CONTROL.sub("�", name[:200].decode("utf-8", "replace"))
    return text if len(name) <= 200 else text + "…"


def _refuse_others(head: bytes) -> None:
    if not head:
        raise ValueError("it is empty")
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(f"it is compressed by {kind}, so nothing in it can be read by offset; unpack it into a plain .tar")
    if len(head) < BLOCK:
        raise ValueError(f"it is no tar file: it has {len(head)} bytes")


def _whole(head: bytes) -> bool:
    """Whether the header's checksum is right."""
    try:
        wanted = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return wanted == sum(head) - sum(head[148:156]) + 8 * 32 and _number(head[124:136]) >= 0


def _number(field: bytes) -> int:
    """The value of an octal or base-256 field; -1 if it is not a number."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if not field[0] & 0x40 else -1
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(head: bytes) -> bytes:
    name, prefix = head[:100].split(b"\0", 1)[0], head[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and head[257:263] == b"ustar\0" else name


def _pax(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0  # an index instead of slices: a megabyte of records of five bytes would be copied 200,000 times
    while (space := content.find(b" ", at, at + 9)) > at:
        length = content[at:space]
        if not length.isdigit() or at + int(length) <= space:
            return
        key, _, value = content[space + 1 : at + int(length)].removesuffix(b"\n").partition(b"=")
        yield key, value
        at += int(length)


def _unsafe(raw: bytes) -> str:
    """Why a name is refused; "" if it is not."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return "its name is no text in UTF-8"
    if _CONTROL.search(name):
        return "its name holds control characters"
    if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in re.split(r"[/\\]", name):
        return "its name leads out of the shard's folder"
    return "" if name else "it has no name"
